// The random generator Philox-4x32-10 (Salmon, Moraes, Dror, Shaw 2011), and standard normals made from its words.
//
// The key is the seed. The counter is (dimension word, sample, row, stream). Equal coordinates therefore give equal noise,
// however the work is cut into chunks, and two streams never share a counter. Dimensions are handled in groups of 64: counter
// word 16 g + j yields the dimensions 64 g + j + {0, 16, 32, 48}, which lets a vector of 16 lanes store its draws without
// shuffling.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

constexpr int kLanes = 16;       // counter words per group
constexpr int kNoiseGroup = 64;  // dimensions per group: four per word

// A counter, or the random words that Philox makes of it.
struct PhiloxWords {
  uint32_t a, b, c, d;
};

// Returns the upper 32 bits of a * b.
DGMFAST_HOST_DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

// Returns the four random words of a counter under a 64-bit key, after ten rounds.
DGMFAST_HOST_DEVICE PhiloxWords philox(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  DGMFAST_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_a = high_product(0xD2511F53u, counter.a), low_a = 0xD2511F53u * counter.a;
    const uint32_t high_c = high_product(0xCD9E8D57u, counter.c), low_c = 0xCD9E8D57u * counter.c;
    counter = {high_c ^ counter.b ^ key_low, low_c, high_a ^ counter.d ^ key_high, low_a};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// Converts a word, read as a signed integer, to T. AVX2 can convert signed integers, but not unsigned ones.
template <class T>
DGMFAST_HOST_DEVICE T signed_word(uint32_t word) {
  return T(int32_t(word));
}

// Returns sqrt(-2 log u), the radius of a Box-Muller pair, for a uniform u made from the word. The top bit says in which half of
// (0, 1) u lies, and the other 31 bits give its distance v from that end. Both ends thus keep full relative precision: the
// largest normal is 6.8, and float and double draws agree to rounding.
template <class T>
DGMFAST_HOST_DEVICE T radius(uint32_t word) {
  const T v = (signed_word<T>(word & 0x7FFFFFFFu) + T(0.5)) * T(2.3283064365386962890625e-10);  // 2^-32
  const bool upper = int32_t(word) >= 0;
  T e, m;
  split_exponent(upper ? T(1) - v : v, e, m);
  const T f = upper && e == T(0) ? -v : m - T(1);
  return square_root(T(-2) * log_from_parts(e, f));
}

// Returns (sin x - x) / x^3 with z = x^2, for |x| <= pi/4.
DGMFAST_HOST_DEVICE float sin_tail(float z) {
  return -0.166666646617146497f + z * (0.00833274815408187481f - z * 0.000195878657016925523f);
}
// Returns (cos x - 1 + x^2/2) / x^4 with z = x^2, for |x| <= pi/4.
DGMFAST_HOST_DEVICE float cos_tail(float z) {
  return 0.0416666646589013549f + z * (-0.00138883029191104704f + z * 0.0000245479168532810236f);
}
// The same functions in double.
DGMFAST_HOST_DEVICE double sin_tail(double z) {
  return -0.166666666666666646 +
         z * (0.00833333333333094729 +
              z * (-0.000198412698367567725 +
                   z * (2.75573161016178506e-6 + z * (-2.50511316502313178e-8 + z * 1.59181152630382453e-10))));
}
DGMFAST_HOST_DEVICE double cos_tail(double z) {
  return 0.0416666666666666654 +
         z * (-0.00138888888888873965 +
              z * (0.0000248015872987645607 +
                   z * (-2.75573172711451311e-7 + z * (2.08761461465561948e-9 - z * 1.13826236473321567e-11))));
}

// Computes the cosine and sine of the angle 2 pi word / 2^32. The reduction to an eighth of a turn is done in integers and is
// exact.
template <class T>
DGMFAST_HOST_DEVICE void turn(uint32_t word, T& cosine, T& sine) {
  const uint32_t quadrant = (word + 0x20000000u) >> 30;
  const T x = signed_word<T>(word - (quadrant << 30)) * T(1.46291807926715968e-9);  // 2 pi / 2^32
  const T z = x * x;
  const T s = x + x * z * sin_tail(z);
  const T c = T(1) - z * (T(0.5) - z * cos_tail(z));
  const bool swap = quadrant & 1u;
  const T a = swap ? s : c, b = swap ? c : s;
  cosine = ((quadrant + 1u) & 2u) ? -a : a;
  sine = (quadrant & 2u) ? -b : b;
}

// Four standard normals.
template <class T>
struct Normals {
  T a, b, c, d;
};

// Returns the four standard normals of one counter, made by two Box-Muller pairs.
template <class T>
DGMFAST_HOST_DEVICE Normals<T> normals(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  const PhiloxWords words = philox(counter, key_low, key_high);
  const T first = radius<T>(words.a), second = radius<T>(words.c);
  Normals<T> n;
  turn(words.b, n.a, n.b);
  turn(words.d, n.c, n.d);
  return {first * n.a, first * n.b, second * n.c, second * n.d};
}

}  // namespace
}  // namespace dgmfast

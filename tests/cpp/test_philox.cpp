// Tests Philox against the published vectors, and the normals made of its words against long double.
#include "check.h"

#include <cstdint>
#include <vector>

#include "math/philox.h"

using namespace dgmfast;
using check::Worst;

namespace {

bool same(PhiloxWords w, uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return w.a == a && w.b == b && w.c == c && w.d == d; }

long double radius_of(uint32_t word) {
  const long double v = ((word & 0x7FFFFFFFu) + 0.5L) / 4294967296.0L;
  return std::sqrt(-2.0L * (word >> 31 ? std::log(v) : std::log1p(-v)));
}

// Returns the cosine or sine of a turn. It is exact to long double even near its zeros, because the angle is first reduced in
// integers.
long double wave(uint32_t word, bool sine) {
  const uint32_t shifted = sine ? word - 0x40000000u : word;  // sin(x) = cos(x - quarter turn)
  const int64_t distance =
      shifted < 0x80000000u ? int64_t(shifted) : 4294967296 - int64_t(shifted);  // distance from the maximum of the cosine
  const long double step = 6.283185307179586476925286766559L / 4294967296.0L;
  if (distance <= 0x20000000) return std::cos(distance * step);
  if (distance >= 0x60000000) return -std::cos((0x80000000LL - distance) * step);
  return std::sin((0x40000000LL - distance) * step);
}

// Returns words at every scale and near every boundary.
std::vector<uint32_t> words() {
  std::vector<uint32_t> w;
  for (uint64_t i = 0; i < 4294967296u; i += 8191) w.push_back(uint32_t(i));
  for (uint64_t boundary = 0; boundary <= 4294967296u; boundary += 0x10000000u) {
    for (int d = -40; d <= 40; ++d) w.push_back(uint32_t(boundary + uint64_t(int64_t(d))));
  }
  for (int bit = 0; bit < 32; ++bit) {
    for (int d = -3; d <= 3; ++d) w.push_back((1u << bit) + uint32_t(d)), w.push_back(~(1u << bit) + uint32_t(d));
  }
  return w;
}

template <class T>
void box_muller(const char* radius_name, const char* turn_name) {
  const std::vector<uint32_t> w = words();
  const int64_t n = int64_t(w.size());
  std::vector<T> r(w.size()), c(w.size()), s(w.size());
  const uint32_t* in = w.data();
  T *out_r = r.data(), *out_c = c.data(), *out_s = s.data();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out_r[i] = radius<T>(in[i]);
    turn(in[i], out_c[i], out_s[i]);
  }
  Worst radius_error{radius_name, 3.0}, turn_error{turn_name, 3.0};
  for (size_t i = 0; i < w.size(); ++i) {
    CHECK(std::isfinite(r[i]) && r[i] > T(0) && r[i] < T(6.8));
    radius_error.add(check::ulps(r[i], radius_of(w[i])), w[i]);
    turn_error.add(check::ulps(c[i], wave(w[i], false)), w[i]);
    turn_error.add(check::ulps(s[i], wave(w[i], true)), w[i]);
  }
}

template <class T>
void four_normals() {
  for (uint32_t i = 0; i < 20000; ++i) {
    const PhiloxWords counter{i, 7u * i, ~i, 3u};
    const PhiloxWords w = philox(counter, 11u, 13u);
    const Normals<T> z = normals<T>(counter, 11u, 13u);
    const long double first = radius_of(w.a), second = radius_of(w.c), tolerance = 4 * std::numeric_limits<T>::epsilon() * 6.8L;
    CHECK(std::fabs(z.a - first * wave(w.b, false)) <= tolerance && std::fabs(z.b - first * wave(w.b, true)) <= tolerance);
    CHECK(std::fabs(z.c - second * wave(w.d, false)) <= tolerance && std::fabs(z.d - second * wave(w.d, true)) <= tolerance);
  }
}

}  // namespace

TEST(philox_known_answers) {  // from Random123's kat_vectors, philox4x32 10
  CHECK(same(philox({0, 0, 0, 0}, 0, 0), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint32_t all = 0xffffffffu;
  CHECK(same(philox({all, all, all, all}, all, all), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  CHECK(same(philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u), 0xd16cfe09u, 0x94fdccebu,
             0x5001e420u, 0x24126ea1u));
}

TEST(box_muller_is_accurate) {
  box_muller<float>("radius<float>", "turn<float>");
  box_muller<double>("radius<double>", "turn<double>");
}

TEST(normals_are_box_muller_of_the_words) { four_normals<float>(), four_normals<double>(); }

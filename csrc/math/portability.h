// What makes one formula compile for every instruction set and for CUDA: internal linkage, and exact reinterpretation of bits.
//
// Everything in csrc/math is in an anonymous namespace. Each instruction set's object file gets its own copy, so the linker can
// never put the AVX-512 version of a function into the baseline code.
#pragma once

#include <math.h>

#include <cstdint>

#ifdef __CUDACC__
#define DGMFAST_HOST_DEVICE __host__ __device__ __forceinline__
#define DGMFAST_UNROLL _Pragma("unroll")
#else
#define DGMFAST_HOST_DEVICE inline __attribute__((always_inline))
#define DGMFAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace dgmfast {
namespace {

template <class T>
struct Bits;  // the integer type of T's width, and T's binary format

template <>
struct Bits<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23;
  static constexpr Int bias = 127;
};

template <>
struct Bits<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52;
  static constexpr Int bias = 1023;
};

// Returns the bits of a value as another type of the same size.
template <class To, class From>
DGMFAST_HOST_DEVICE To bits_as(From value) {
  return __builtin_bit_cast(To, value);
}

// Returns positive infinity.
template <class T>
DGMFAST_HOST_DEVICE T infinity() {
  return T(__builtin_huge_valf());
}

// Returns the larger number, or b if either is NaN.
template <class T>
DGMFAST_HOST_DEVICE T maximum(T a, T b) {
  return a > b ? a : b;
}

// Returns the smaller number, or b if either is NaN.
template <class T>
DGMFAST_HOST_DEVICE T minimum(T a, T b) {
  return a < b ? a : b;
}

// The absolute value and the square root, overloaded for float and double.
DGMFAST_HOST_DEVICE float magnitude(float a) { return fabsf(a); }
DGMFAST_HOST_DEVICE double magnitude(double a) { return fabs(a); }
DGMFAST_HOST_DEVICE float square_root(float a) { return sqrtf(a); }
DGMFAST_HOST_DEVICE double square_root(double a) { return sqrt(a); }

}  // namespace
}  // namespace dgmfast

// What lets one formula compile for every instruction set and for CUDA: internal linkage, and exact bit reinterpretation.
//
// Everything in csrc/math sits in an anonymous namespace: each instruction set's object file gets its own copy, so the
// linker can never hand the AVX-512 version of a function to the baseline path.
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

template <class To, class From>
DGMFAST_HOST_DEVICE To bits_as(From value) {
  return __builtin_bit_cast(To, value);
}

template <class T>
DGMFAST_HOST_DEVICE T infinity() {
  return T(__builtin_huge_valf());
}

template <class T>
DGMFAST_HOST_DEVICE T maximum(T a, T b) {  // not NaN-propagating: b when either is NaN
  return a > b ? a : b;
}

template <class T>
DGMFAST_HOST_DEVICE T minimum(T a, T b) {
  return a < b ? a : b;
}

DGMFAST_HOST_DEVICE float magnitude(float a) { return fabsf(a); }
DGMFAST_HOST_DEVICE double magnitude(double a) { return fabs(a); }
DGMFAST_HOST_DEVICE float square_root(float a) { return sqrtf(a); }
DGMFAST_HOST_DEVICE double square_root(double a) { return sqrt(a); }

}  // namespace
}  // namespace dgmfast

// Vector types for the kernels whose sums must stay in registers: in an `omp simd` loop the compiler would not keep a tile of
// sums there. Everything has internal linkage.
#pragma once

#include "math/portability.h"

namespace dgmfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  typedef typename Bits<T>::Int Index __attribute__((vector_size(kVectorBytes)));
  static constexpr int count = kVectorBytes / sizeof(T);
};
template <class T>
using Vector = typename Lanes<T>::Vector;

template <class T>
DGMFAST_HOST_DEVICE Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
DGMFAST_HOST_DEVICE void store(T* to, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls body(Constant<n>()) for a run-time n with 1 <= n <= kMost.
template <int kMost, class Body>
DGMFAST_HOST_DEVICE void with_constant(int64_t n, Body body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, body);
  }
  body(Constant<kMost>());
}

}  // namespace
}  // namespace dgmfast

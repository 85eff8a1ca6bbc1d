#include "kernels/importance_bound.h"

#include "kernels/cpu/row_loops.h"
#include "math/importance.h"

namespace dgmfast {
namespace {

template <class T, class Weight>
T sum_weights(const T* log_w, int64_t k, Weight weight) {
  return sum_in_blocks<T>(k, [=](int64_t begin, int64_t end) {
    T block = 0;
#pragma omp simd reduction(+ : block)
    for (int64_t i = begin; i < end; ++i) block += weight(log_w[i]);
    return block;
  });
}

template <class T>
T largest(const T* log_w, int64_t k) {
  T top = -infinity<T>();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < k; ++i) top = maximum(log_w[i], top);
  return top;
}

template <class T>
T row_bound(const T* log_w, int64_t k) {
  const T top = largest(log_w, k);
  const bool finite = magnitude(top) < infinity<T>();
  const T shift = finite ? top : T(0);
  const T sum = finite ? sum_weights(log_w, k, [=](T l) { return exp_nonpositive(l - top); })
                       : sum_weights(log_w, k, [](T l) { return exp(l); });
  // if all weights are 0, or one is infinite or NaN, the sum is not a positive finite number
  const T log_sum = sum > T(0) && sum < infinity<T>() ? log_positive(sum) : sum == T(0) ? -infinity<T>() : sum;
  return log_sum + (shift - log_positive(T(k)));
}

template <class T>
void forward(const ImportanceBound& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 1, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    static_cast<T*>(p.bound)[r] = row_bound(static_cast<const T*>(p.log_w) + row.offset(0), p.plan.dim);
  }
}

// Writes g times each weight's share of the sum. The weights are taken relative to the largest one and not to the bound, because
// the bound has a rounding error of its own size.
template <class T>
void row_gradient(const T* log_w, int64_t k, T g, T* grad) {
  const T top = largest(log_w, k);
  const T shift = top == -infinity<T>() ? T(0) : top;
  const T sum = sum_in_blocks<T>(k, [=](int64_t begin, int64_t end) {
    T block = 0;
#pragma omp simd reduction(+ : block)
    for (int64_t i = begin; i < end; ++i) {
      const T weight = exp_nonpositive(log_w[i] - shift);
      grad[i] = log_w[i] == shift ? T(1) : weight;  // weights that are infinite share the gradient
      block += grad[i];
    }
    return block;
  });
  const T scale = sum == T(0) ? T(0) : g / sum;  // a row whose weights are all 0 has no gradient
#pragma omp simd
  for (int64_t i = 0; i < k; ++i) grad[i] *= scale;
}

template <class T>
void backward(const ImportanceBoundBackward& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    row_gradient(static_cast<const T*>(p.log_w) + row.offset(0), p.plan.dim, static_cast<const T*>(p.grad)[row.offset(1)],
                 static_cast<T*>(p.grad_log_w) + r * p.plan.dim);
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void importance_bound(const ImportanceBound& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void importance_bound_backward(const ImportanceBoundBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

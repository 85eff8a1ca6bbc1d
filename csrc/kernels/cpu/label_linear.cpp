#include "kernels/label_linear.h"

#include "kernels/cpu/activation.h"
#include "kernels/cpu/row_loops.h"

namespace dgmfast {
namespace {

// Calls body(T, F), where T is the dtype and F the activation.
template <class Body>
void with_types(DType dtype, Activation activation, Body body) {
  with_float_type(dtype, [&](auto type) { with_activation(activation, [&](auto f) { body(type, f); }); });
}

// An item is one row with one label.
template <class T, class F>
void forward(const LabelLinear& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const T* shared = static_cast<const T*>(p.shared) + item / p.labels * p.dim;
    const T* label_weight = static_cast<const T*>(p.label_weight) + item % p.labels * p.dim;
    T* out = static_cast<T*>(p.out) + item * p.dim;
#pragma omp simd
    for (int64_t h = 0; h < p.dim; ++h) out[h] = F::value(shared[h] + label_weight[h]);
  }
}

// Computes, for a segment of rows and a block of columns, the sums of δ over the labels and over the rows. δ itself is never
// written to memory.
template <class T, class F, bool kLabelWeight>
void sum_block(const LabelLinearBackward& p, int64_t segment, int64_t column, int64_t count) {
  T scratch[kLabelColumns];
  T* total = static_cast<T*>(p.grad_label_weight) + segment * p.labels * p.dim + column;
  if constexpr (kLabelWeight) {
    for (int64_t y = 0; y < p.labels; ++y) {
      for (int64_t c = 0; c < count; ++c) total[y * p.dim + c] = T(0);
    }
  }
  const int64_t last = minimum((segment + 1) * p.segment, p.rows);
  for (int64_t row = segment * p.segment; row < last; ++row) {
    T* shared = p.grad_shared ? static_cast<T*>(p.grad_shared) + row * p.dim + column : scratch;
    for (int64_t c = 0; c < count; ++c) shared[c] = T(0);
    for (int64_t y = 0; y < p.labels; ++y) {
      const int64_t first = (row * p.labels + y) * p.dim + column;
      const T *grad = static_cast<const T*>(p.grad) + first, *out = static_cast<const T*>(p.out) + first;
      T* label = kLabelWeight ? total + y * p.dim : nullptr;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const T delta = F::gradient(grad[c], out[c]);
        shared[c] += delta;
        if constexpr (kLabelWeight) label[c] += delta;
      }
    }
  }
}

template <class T, class F>
void backward(const LabelLinearBackward& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.dim + kLabelColumns - 1) / kLabelColumns;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t column = item % blocks * kLabelColumns, count = minimum(kLabelColumns, p.dim - column);
    if (p.grad_label_weight) {
      sum_block<T, F, true>(p, item / blocks, column, count);
    } else {
      sum_block<T, F, false>(p, item / blocks, column, count);
    }
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void label_linear(const LabelLinear& p, int64_t begin, int64_t end) {
  with_types(p.dtype, p.activation, [&](auto type, auto f) { forward<decltype(type), decltype(f)>(p, begin, end); });
}

void label_linear_backward(const LabelLinearBackward& p, int64_t begin, int64_t end) {
  with_types(p.dtype, p.activation, [&](auto type, auto f) { backward<decltype(type), decltype(f)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

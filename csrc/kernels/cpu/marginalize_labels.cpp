#include "kernels/marginalize_labels.h"

#include "kernels/cpu/rows.h"
#include "math/categorical.h"

namespace dgmfast {
namespace {

template <class T>
struct RowSums {
  T top, log_sum, pivot, rest;
};

// The result is pivot + rest. Values near −100 nats that differ by a few leave the differences all their digits.
template <class T>
RowSums<T> row_sums(const T* logits, const T* values, int64_t labels) {
  T top = -infinity<T>(), likely = -infinity<T>();
#pragma omp simd reduction(max : top)
  for (int64_t y = 0; y < labels; ++y) top = maximum(logits[y], top);
#pragma omp simd reduction(max : likely)
  for (int64_t y = 0; y < labels; ++y) likely = maximum(logits[y] == top ? values[y] : -infinity<T>(), likely);
  const T pivot = magnitude(likely) < infinity<T>() ? likely : T(0);
  T sum = 0, weighted = 0;
  for (int64_t begin = 0; begin < labels; begin += kSumBlock) {
    const int64_t end = minimum(begin + kSumBlock, labels);
    T block_sum = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_sum, block_weighted)
    for (int64_t y = begin; y < end; ++y) {
      const T log_weight = logits[y] - top, weight = exp_nonpositive(log_weight);
      block_sum += weight;
      block_weighted += label_term(weight, log_weight, values[y] - pivot);
    }
    sum += block_sum;
    weighted += block_weighted;
  }
  const T log_sum = sum > T(0) ? log_positive(sum) : sum;  // or NaN, which log_positive would lose
  return {top, log_sum, pivot, weighted / sum + log_sum};
}

template <class T>
void forward(const MarginalizeLabels& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    const RowSums<T> s =
        row_sums(static_cast<const T*>(p.logits) + row.offset(0), static_cast<const T*>(p.values) + row.offset(1), p.plan.dim);
    if (p.bound) {
      static_cast<T*>(p.bound)[r] = s.pivot + s.rest;
    } else {
      T* sums = static_cast<T*>(p.sums) + r * kLabelSums;
      sums[0] = s.top, sums[1] = s.log_sum, sums[2] = s.pivot, sums[3] = s.rest;
    }
  }
}

template <class T>
void backward(const MarginalizeLabelsBackward& p, int64_t begin, int64_t end) {
  gradient_rows<T>(p.plan, 4, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T* logits = static_cast<const T*>(p.input[0]) + offset[0] + column;
    const T* values = static_cast<const T*>(p.input[1]) + offset[1] + column;
    const T* sums = static_cast<const T*>(p.sums) + offset[3] * kLabelSums;
    const T g = static_cast<const T*>(p.grad)[offset[2]], top = sums[0], log_sum = sums[1], pivot = sums[2], rest = sums[3];
    T *out_0 = out[0], *out_1 = out[1];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      const LabelGradients<T> d = label_gradients((logits[c] - top) - log_sum, values[c] - pivot, rest);
      out_0[c] = g * d.logit;
      out_1[c] = g * d.value;
    }
  });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void marginalize_labels(const MarginalizeLabels& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void marginalize_labels_backward(const MarginalizeLabelsBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

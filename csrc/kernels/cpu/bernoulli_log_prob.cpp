#include "kernels/bernoulli_log_prob.h"

#include "kernels/cpu/row_loops.h"
#include "math/bernoulli.h"

namespace dgmfast {
namespace {

constexpr int kWidth = 32;  // number of independent products: a few vectors in any instruction set

// Returns Σ_d x_d l_d − softplus(l_d). The factors of the softplus are multiplied together, in kWidth products side by side, and
// the logarithm of the products is taken once per kFactors steps.
template <class T, class X>
T row_log_prob(const T* logits, const X* x, int64_t dim) {
  T total = 0;
  for (int64_t begin = 0; begin < dim; begin += kWidth * kFactors<T>) {
    const int64_t end = minimum(begin + kWidth * kFactors<T>, dim);
    T linear[kWidth], excess[kWidth];
    for (int j = 0; j < kWidth; ++j) linear[j] = excess[j] = T(0);
    int64_t d = begin;
    for (; d + kWidth <= end; d += kWidth) {
#pragma omp simd
      for (int j = 0; j < kWidth; ++j) {
        linear[j] += bernoulli_linear(logits[d + j], T(x[d + j]));
        excess[j] = softplus_product(excess[j], logits[d + j]);
      }
    }
    const int rest = int(end - d);
#pragma omp simd
    for (int j = 0; j < rest; ++j) {
      linear[j] += bernoulli_linear(logits[d + j], T(x[d + j]));
      excess[j] = softplus_product(excess[j], logits[d + j]);
    }
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < kWidth; ++j) sum += linear[j] - log1p_nonnegative(excess[j]);
    total += sum;
  }
  return total;
}

template <class T, class X>
void forward(const BernoulliLogProb& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    static_cast<T*>(p.log_prob)[r] =
        row_log_prob(static_cast<const T*>(p.logits) + row.offset(0), static_cast<const X*>(p.x) + row.offset(1), p.plan.dim);
  }
}

template <class T, class X>
void backward(const BernoulliLogProbBackward& p, int64_t begin, int64_t end) {
  gradient_rows<T>(p.plan, 3, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T g = static_cast<const T*>(p.grad)[offset[2]];
    const T* logits = static_cast<const T*>(p.input[0]) + offset[0] + column;
    const X* x = static_cast<const X*>(p.input[1]) + offset[1] + column;
    T *out_0 = out[0], *out_1 = out[1];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      out_0[c] = g * (T(x[c]) - sigmoid(logits[c]));
      out_1[c] = g * logits[c];
    }
  });
}

// Calls body(T, X), where T is the dtype of the logits and X that of x.
template <class Body>
void with_types(DType dtype, DType x_type, Body body) {
  with_float_type(dtype, [&](auto type) { x_type == DType::u8 ? body(type, uint8_t()) : body(type, type); });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void bernoulli_log_prob(const BernoulliLogProb& p, int64_t begin, int64_t end) {
  with_types(p.plan.dtype, p.x_type, [&](auto type, auto x) { forward<decltype(type), decltype(x)>(p, begin, end); });
}

void bernoulli_log_prob_backward(const BernoulliLogProbBackward& p, int64_t begin, int64_t end) {
  with_types(p.plan.dtype, p.x_type, [&](auto type, auto x) { backward<decltype(type), decltype(x)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

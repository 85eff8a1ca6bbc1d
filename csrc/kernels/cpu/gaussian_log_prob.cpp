#include "kernels/gaussian_log_prob.h"

#include "kernels/cpu/row_loops.h"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

// Returns the log-density of one row. A null mean or log_var means 0.
template <class T>
T row_log_prob(const T* x, const T* mean, const T* log_var, int64_t dim) {
  const T total = sum_in_blocks<T>(dim, [=](int64_t begin, int64_t end) {
    T sum = 0;
    if (mean && log_var) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += deviance(x[d], mean[d], log_var[d]);
    } else if (log_var) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += deviance(x[d], T(0), log_var[d]);
    } else if (mean) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += (x[d] - mean[d]) * (x[d] - mean[d]);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += x[d] * x[d];
    }
    return sum;
  });
  return T(-0.5) * (total + T(dim) * T(kLog2Pi));
}

template <class T>
void forward(const GaussianLogProb& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 3, begin);
  const T* mean = static_cast<const T*>(p.mean);
  const T* log_var = static_cast<const T*>(p.log_var);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    static_cast<T*>(p.log_prob)[r] = row_log_prob(static_cast<const T*>(p.x) + row.offset(0), mean ? mean + row.offset(1) : mean,
                                                  log_var ? log_var + row.offset(2) : log_var, p.plan.dim);
  }
}

template <class T>
void backward(const GaussianLogProbBackward& p, int64_t begin, int64_t end) {
  static constexpr T zeros[kColumns] = {};  // stands for a null mean or log_var
  const T* input[3];
  for (int i = 0; i < 3; ++i) input[i] = static_cast<const T*>(p.input[i]);
  gradient_rows<T>(p.plan, 4, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T g = static_cast<const T*>(p.grad)[offset[3]];
    const T* x = input[0] + offset[0] + column;
    const T* mean = input[1] ? input[1] + offset[1] + column : zeros;
    T *out_0 = out[0], *out_1 = out[1], *out_2 = out[2];
    if (input[2]) {
      const T* log_var = input[2] + offset[2] + column;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const LogProbGradients<T> d = log_prob_gradients(x[c], mean[c], log_var[c]);
        out_0[c] = g * d.x;
        out_1[c] = g * d.mean;
        out_2[c] = g * d.log_var;
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const T pull = g * (x[c] - mean[c]);
        out_0[c] = -pull;
        out_1[c] = pull;
      }
    }
  });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void gaussian_log_prob(const GaussianLogProb& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void gaussian_log_prob_backward(const GaussianLogProbBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

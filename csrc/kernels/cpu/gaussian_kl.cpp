#include "kernels/gaussian_kl.h"

#include "kernels/cpu/row_loops.h"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

// Returns the KL divergence of one row. A null mean_p or log_var_p means 0.
template <class T>
T row_kl(const T* mean_q, const T* log_var_q, const T* mean_p, const T* log_var_p, int64_t dim) {
  const T twice = sum_in_blocks<T>(dim, [=](int64_t begin, int64_t end) {
    T sum = 0;
    if (mean_p && log_var_p) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += twice_kl(mean_q[d], log_var_q[d], mean_p[d], log_var_p[d]);
    } else if (mean_p) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += twice_kl_standard(mean_q[d] - mean_p[d], log_var_q[d]);
    } else if (log_var_p) {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += twice_kl(mean_q[d], log_var_q[d], T(0), log_var_p[d]);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t d = begin; d < end; ++d) sum += twice_kl_standard(mean_q[d], log_var_q[d]);
    }
    return sum;
  });
  return T(0.5) * twice;
}

template <class T>
void forward(const GaussianKl& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 4, begin);
  const T* mean_p = static_cast<const T*>(p.mean_p);
  const T* log_var_p = static_cast<const T*>(p.log_var_p);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    static_cast<T*>(p.kl)[r] =
        row_kl(static_cast<const T*>(p.mean_q) + row.offset(0), static_cast<const T*>(p.log_var_q) + row.offset(1),
               mean_p ? mean_p + row.offset(2) : mean_p, log_var_p ? log_var_p + row.offset(3) : log_var_p, p.plan.dim);
  }
}

template <class T>
void backward(const GaussianKlBackward& p, int64_t begin, int64_t end) {
  const T* input[4];
  for (int i = 0; i < 4; ++i) input[i] = static_cast<const T*>(p.input[i]);
  static constexpr T zeros[kColumns] = {};  // stands for a null mean_p or log_var_p
  gradient_rows<T>(p.plan, 5, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T g = static_cast<const T*>(p.grad)[offset[4]];
    const T* mean_q = input[0] + offset[0] + column;
    const T* log_var_q = input[1] + offset[1] + column;
    T *out_0 = out[0], *out_1 = out[1], *out_2 = out[2], *out_3 = out[3];
    if (input[2] || input[3]) {
      const T* mean_p = input[2] ? input[2] + offset[2] + column : zeros;
      const T* log_var_p = input[3] ? input[3] + offset[3] + column : zeros;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const KlGradients<T> d = kl_gradients(mean_q[c], log_var_q[c], mean_p[c], log_var_p[c]);
        out_0[c] = g * d.mean_q;
        out_1[c] = g * d.log_var_q;
        out_2[c] = g * d.mean_p;
        out_3[c] = g * d.log_var_p;
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        out_0[c] = g * mean_q[c];
        out_1[c] = g * T(0.5) * (exp(log_var_q[c]) - T(1));
      }
    }
  });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void gaussian_kl(const GaussianKl& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void gaussian_kl_backward(const GaussianKlBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

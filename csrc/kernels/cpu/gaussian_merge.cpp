#include "kernels/gaussian_merge.h"

#include "kernels/cpu/row_loops.h"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

template <class T>
void forward(const GaussianMerge& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 4, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    const T* input[4];
    for (int i = 0; i < 4; ++i) input[i] = static_cast<const T*>(p.input[i]) + row.offset(i);
    const T *mean_q = input[0], *log_var_q = input[1], *mean_p = input[2], *log_var_p = input[3];
    T* mean = static_cast<T*>(p.mean) + r * p.plan.dim;
    T* log_var = static_cast<T*>(p.log_var) + r * p.plan.dim;
#pragma omp simd
    for (int64_t d = 0; d < p.plan.dim; ++d) {
      const Merged<T> merged = merge(mean_q[d], log_var_q[d], mean_p[d], log_var_p[d]);
      mean[d] = merged.mean;
      log_var[d] = merged.log_var;
    }
  }
}

template <class T>
void backward(const GaussianMergeBackward& p, int64_t begin, int64_t end) {
  gradient_rows<T>(p.plan, 6, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T* input[4];
    for (int i = 0; i < 4; ++i) input[i] = static_cast<const T*>(p.input[i]) + offset[i] + column;
    const T *mean_q = input[0], *log_var_q = input[1], *mean_p = input[2], *log_var_p = input[3];
    const T* grad_mean = static_cast<const T*>(p.grad_mean) + offset[4] + column;
    const T* grad_log_var = static_cast<const T*>(p.grad_log_var) + offset[5] + column;
    T *out_0 = out[0], *out_1 = out[1], *out_2 = out[2], *out_3 = out[3];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      const KlGradients<T> d = merge_gradients(mean_q[c], log_var_q[c], mean_p[c], log_var_p[c], grad_mean[c], grad_log_var[c]);
      out_0[c] = d.mean_q;
      out_1[c] = d.log_var_q;
      out_2[c] = d.mean_p;
      out_3[c] = d.log_var_p;
    }
  });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void gaussian_merge(const GaussianMerge& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void gaussian_merge_backward(const GaussianMergeBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

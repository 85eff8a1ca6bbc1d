#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct GaussianKl {
  RowPlan plan;
  const void* mean_q;     // [rows, dim], by outer.stride[0]
  const void* log_var_q;  // [rows, dim], by outer.stride[1]
  const void* mean_p;     // [rows, dim], by outer.stride[2]; null means 0
  const void* log_var_p;  // [rows, dim], by outer.stride[3]; null means 0
  void* kl;               // [rows]
};

struct GaussianKlBackward {
  RowPlan plan;
  const void* input[4];  // mean_q, log_var_q, mean_p, log_var_p: as above
  const void* grad;      // [rows], by outer.stride[4]
  void* grad_input[4];   // [segments, outer.rows, dim]; null if not wanted
};

DGMFAST_KERNEL(gaussian_kl, GaussianKl)
DGMFAST_KERNEL(gaussian_kl_backward, GaussianKlBackward)

}  // namespace dgmfast

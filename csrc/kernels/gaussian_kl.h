#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct GaussianKl {
  RowPlan plan;
  const void* mean_q;     // [rows, dim], by outer.stride[0]
  const void* log_var_q;  // [rows, dim], [1]
  const void* mean_p;     // [rows, dim], [2]; null: 0
  const void* log_var_p;  // [rows, dim], [3]; null: 0
  void* kl;               // [rows]
};

struct GaussianKlBackward {
  RowPlan plan;
  const void* input[4];  // as above
  const void* grad;      // [rows], by outer.stride[4]
  void* grad_input[4];   // [segments, outer.rows, dim]; null: not wanted
};

DGMFAST_KERNEL(gaussian_kl, GaussianKl)
DGMFAST_KERNEL(gaussian_kl_backward, GaussianKlBackward)

}  // namespace dgmfast

#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct GaussianMerge {
  RowPlan plan;
  const void* input[4];  // mean_q, log_var_q, mean_p, log_var_p: [rows, dim], by outer.stride[0..3]
  void* mean;            // [rows, dim]
  void* log_var;         // [rows, dim]
};

struct GaussianMergeBackward {
  RowPlan plan;
  const void* input[4];      // mean_q, log_var_q, mean_p, log_var_p: as above
  const void* grad_mean;     // [rows, dim], by outer.stride[4]
  const void* grad_log_var;  // [rows, dim], by outer.stride[5]
  void* grad_input[4];       // [segments, outer.rows, dim]; null if not wanted
};

DGMFAST_KERNEL(gaussian_merge, GaussianMerge)
DGMFAST_KERNEL(gaussian_merge_backward, GaussianMergeBackward)

}  // namespace dgmfast

#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct GaussianLogProb {
  RowPlan plan;
  const void* x;        // [rows, dim], by outer.stride[0]
  const void* mean;     // [rows, dim], by outer.stride[1]; null means 0
  const void* log_var;  // [rows, dim], by outer.stride[2]; null means 0
  void* log_prob;       // [rows]
};

struct GaussianLogProbBackward {
  RowPlan plan;
  const void* input[3];  // x, mean, log_var: as above
  const void* grad;      // [rows], by outer.stride[3]
  void* grad_input[3];   // [segments, outer.rows, dim]; null if not wanted
};

DGMFAST_KERNEL(gaussian_log_prob, GaussianLogProb)
DGMFAST_KERNEL(gaussian_log_prob_backward, GaussianLogProbBackward)

}  // namespace dgmfast

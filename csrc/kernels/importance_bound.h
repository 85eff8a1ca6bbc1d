#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct ImportanceBound {
  RowPlan plan;       // dim = K
  const void* log_w;  // [rows, K], by outer.stride[0]
  void* bound;        // [rows]
};

struct ImportanceBoundBackward {
  RowPlan plan;
  const void* log_w;  // [rows, K], by outer.stride[0]
  const void* grad;   // [rows], by outer.stride[1]
  void* grad_log_w;   // [rows, K]
};

DGMFAST_KERNEL(importance_bound, ImportanceBound)
DGMFAST_KERNEL(importance_bound_backward, ImportanceBoundBackward)

}  // namespace dgmfast

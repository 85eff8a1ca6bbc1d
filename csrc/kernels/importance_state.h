#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct ImportanceState {
  RowPlan plan;          // dim = K
  const void* log_w;     // [rows, K], by outer.stride[0]
  const double* before;  // [rows, 5], by outer.stride[1]; null if there are no weights yet
  double* after;         // [rows, 5]
};

DGMFAST_KERNEL(importance_state, ImportanceState)

}  // namespace dgmfast

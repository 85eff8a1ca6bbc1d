#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// The gradient of a row needs four numbers that depend on all its labels: the largest logit, log Σ e^{logit − largest}, the value
// of the label with the largest logit (0 if that is not finite), and the row's result minus that value.
constexpr int kLabelSums = 4;

struct MarginalizeLabels {
  RowPlan plan;        // dim = Y
  const void* logits;  // [rows, Y], by outer.stride[0]
  const void* values;  // [rows, Y], by outer.stride[1]
  void* bound;         // [rows]; null if `sums` is wanted instead
  void* sums;          // [rows, kLabelSums], double if the logits are, else float; null if `bound` is wanted
};

struct MarginalizeLabelsBackward {
  RowPlan plan;
  const void* input[2];  // logits, values: as above
  const void* grad;      // [rows], by outer.stride[2]
  const void* sums;      // [rows, kLabelSums]; stride[3] counts rows
  void* grad_input[2];   // [segments, outer.rows, Y]; null if not wanted
};

DGMFAST_KERNEL(marginalize_labels, MarginalizeLabels)
DGMFAST_KERNEL(marginalize_labels_backward, MarginalizeLabelsBackward)

}  // namespace dgmfast

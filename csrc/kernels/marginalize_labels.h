#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// What the gradient of a row needs of all its labels: the largest logit, log Σ e^{logit − largest}, that label's value, and
// the row's result less that value.
constexpr int kLabelSums = 4;

struct MarginalizeLabels {
  RowPlan plan;        // dim = Y
  const void* logits;  // [rows, Y], by outer.stride[0]
  const void* values;  // [rows, Y], [1]
  void* bound;         // [rows]; null: sums instead
  void* sums;          // [rows, kLabelSums] of float, of double where the logits are; null: bound instead
};

struct MarginalizeLabelsBackward {
  RowPlan plan;
  const void* input[2];  // as above
  const void* grad;      // [rows], by outer.stride[2]
  const void* sums;      // [rows, kLabelSums], [3] counts rows
  void* grad_input[2];   // [segments, outer.rows, Y]; null: not wanted
};

DGMFAST_KERNEL(marginalize_labels, MarginalizeLabels)
DGMFAST_KERNEL(marginalize_labels_backward, MarginalizeLabelsBackward)

}  // namespace dgmfast

#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// Everything is contiguous.
struct LabelLinear {
  int64_t labels, dim;  // Y, H
  int64_t rows;
  DType dtype;
  Activation activation;
  const void* shared;        // [rows, H]: what does not depend on the label
  const void* label_weight;  // [Y, H]
  void* out;                 // [rows, Y, H]
};

// δ, the gradient of what went into the activation, summed over the labels and over the rows.
struct LabelLinearBackward {
  int64_t labels, dim;
  int64_t rows, segment;  // the rows are cut in segments of `segment` rows
  DType dtype;
  Activation activation;
  const void* grad;         // [rows, Y, H]
  const void* out;          // [rows, Y, H]
  void* grad_shared;        // [rows, H]; null: not wanted
  void* grad_label_weight;  // [segments, Y, H], float32 where the others have 16 bits; null: not wanted

  constexpr int64_t segments() const { return (rows + segment - 1) / segment; }
};

constexpr int64_t kLabelColumns = 128;  // columns that an item of the CPU kernel sums over a segment

DGMFAST_KERNEL(label_linear, LabelLinear)
DGMFAST_KERNEL(label_linear_backward, LabelLinearBackward)

}  // namespace dgmfast

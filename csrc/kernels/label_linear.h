#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// All arrays are contiguous.
struct LabelLinear {
  int64_t labels, dim;  // Y, H
  int64_t rows;
  DType dtype;
  Activation activation;
  const void* shared;        // [rows, H]: the part of the activation's input that does not depend on the label
  const void* label_weight;  // [Y, H]
  void* out;                 // [rows, Y, H]
};

// Sums δ, the gradient of the activation's input, over the labels and over the rows.
struct LabelLinearBackward {
  int64_t labels, dim;
  int64_t rows, segment;  // the sums over rows are cut into segments of `segment` rows
  DType dtype;
  Activation activation;
  const void* grad;         // [rows, Y, H]
  const void* out;          // [rows, Y, H]
  void* grad_shared;        // [rows, H]: δ summed over the labels; null if not wanted
  void* grad_label_weight;  // [segments, Y, H]: δ summed over the rows, float32 if the others have 16 bits; null if not wanted

  constexpr int64_t segments() const { return (rows + segment - 1) / segment; }
};

constexpr int64_t kLabelColumns = 128;  // columns that one item of the CPU kernel sums over a segment

DGMFAST_KERNEL(label_linear, LabelLinear)
DGMFAST_KERNEL(label_linear_backward, LabelLinearBackward)

}  // namespace dgmfast

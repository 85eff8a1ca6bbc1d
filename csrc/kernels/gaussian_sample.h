#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// The Philox coordinates of a launch: element (row, sample, d) draws from counter (d, first_sample + sample, first_row + row,
// stream) under the key `seed`, whatever part of the whole it is.
struct NoiseKey {
  int64_t seed;
  const int64_t* seed_on_device;  // replaces `seed` where not null, so that a captured graph draws afresh at each replay
  uint32_t stream, first_row, first_sample;
  int64_t samples;  // per row
};

struct GaussianSample {
  RowPlan plan;  // rows = B * samples
  NoiseKey key;
  const void* mean;     // [rows, dim], by outer.stride[0]
  const void* log_var;  // [rows, dim], [1]
  void* z;              // [rows, dim]
  void* log_q;          // [rows]
};

struct GaussianSampleBackward {
  RowPlan plan;
  NoiseKey key;
  const void* log_var;     // [rows, dim], by outer.stride[1]
  const void* grad_z;      // [rows, dim], [2]
  const void* grad_log_q;  // [rows], [3]
  void* grad_input[2];     // mean, log_var: [segments, outer.rows, dim]; null: not wanted. stride[4] gives the row's own index
};

DGMFAST_KERNEL(gaussian_sample, GaussianSample)
DGMFAST_KERNEL(gaussian_sample_backward, GaussianSampleBackward)

}  // namespace dgmfast

#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// The Philox coordinates of a launch. Element (row, sample, d) is drawn from the counter (word of d, first_sample + sample,
// first_row + row, stream) under the key `seed`; see math/philox.h. The noise therefore does not depend on how a larger draw is
// split into launches.
struct NoiseKey {
  int64_t seed;
  const int64_t* seed_on_device;  // replaces `seed` if not null, so that a captured CUDA graph draws new noise at each replay
  uint32_t stream, first_row, first_sample;
  int64_t samples;  // samples per row
};

struct GaussianSample {
  RowPlan plan;  // rows = B * samples
  NoiseKey key;
  const void* mean;     // [rows, dim], by outer.stride[0]
  const void* log_var;  // [rows, dim], by outer.stride[1]
  void* z;              // [rows, dim]
  void* log_q;          // [rows]
};

struct GaussianSampleBackward {
  RowPlan plan;  // stride[4] gives a row's own index, which its noise depends on
  NoiseKey key;
  const void* log_var;     // [rows, dim], by outer.stride[1]
  const void* grad_z;      // [rows, dim], by outer.stride[2]
  const void* grad_log_q;  // [rows], by outer.stride[3]
  void* grad_input[2];     // mean, log_var: [segments, outer.rows, dim]; null if not wanted
};

DGMFAST_KERNEL(gaussian_sample, GaussianSample)
DGMFAST_KERNEL(gaussian_sample_backward, GaussianSampleBackward)

}  // namespace dgmfast

#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

struct BernoulliLogProb {
  RowPlan plan;
  DType x_type;        // the dtype of logits, or u8
  const void* logits;  // [rows, dim], by outer.stride[0]
  const void* x;       // [rows, dim], by outer.stride[1]
  void* log_prob;      // [rows]
};

struct BernoulliLogProbBackward {
  RowPlan plan;
  DType x_type;
  const void* input[2];  // logits, x: as above
  const void* grad;      // [rows], by outer.stride[2]
  void* grad_input[2];   // [segments, outer.rows, dim]; null if not wanted
};

DGMFAST_KERNEL(bernoulli_log_prob, BernoulliLogProb)
DGMFAST_KERNEL(bernoulli_log_prob_backward, BernoulliLogProbBackward)

}  // namespace dgmfast

#include "kernels/marginalize_labels.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/categorical.h"

namespace dgmfast {
namespace {

// One warp per row.
template <class Stored>
__global__ void __launch_bounds__(kBlock) forward(MarginalizeLabels p) {
  using R = Real<Stored>;
  const int64_t row = (int64_t(blockIdx.x) * kBlock + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.plan.outer.rows) return;
  int64_t offset[2] = {};
  row_offsets(p.plan.outer, 2, row, offset);
  R top = -infinity<R>();
  for (int64_t y = lane; y < p.plan.dim; y += 32) top = maximum(load<Stored>(p.logits, offset[0] + y), top);
  top = max_over_warp(top);
  R likely = -infinity<R>(), sum = 0, weighted = 0;
  for (int64_t y = lane; y < p.plan.dim; y += 32) {
    if (load<Stored>(p.logits, offset[0] + y) == top) likely = maximum(load<Stored>(p.values, offset[1] + y), likely);
  }
  likely = max_over_warp(likely);
  const R pivot = magnitude(likely) < infinity<R>() ? likely : R(0);  // the reason is in kernels/cpu/marginalize_labels.cpp
  for (int64_t y = lane; y < p.plan.dim; y += 32) {
    const R log_weight = load<Stored>(p.logits, offset[0] + y) - top, weight = exp_nonpositive(log_weight);
    sum += weight;
    weighted += label_term(weight, log_weight, load<Stored>(p.values, offset[1] + y) - pivot);
  }
  sum = sum_over_warp(sum);
  const R log_sum = log_positive(sum), rest = sum_over_warp(weighted) / sum + log_sum;
  if (lane != 0) return;
  if (p.bound) {
    store<Stored>(p.bound, row, pivot + rest);
  } else {
    R* sums = static_cast<R*>(p.sums) + row * kLabelSums;
    sums[0] = top, sums[1] = log_sum, sums[2] = pivot, sums[3] = rest;
  }
}

template <class Stored>
struct Backward {
  MarginalizeLabelsBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[2]) const {
    using R = Real<Stored>;
    const R* sums = static_cast<const R*>(p.sums) + offset[3] * kLabelSums;
    const R grad = load<Stored>(p.grad, offset[2]);
    const R log_q = (load<Stored>(p.input[0], offset[0] + d) - sums[0]) - sums[1];
    const LabelGradients<R> g = label_gradients(log_q, load<Stored>(p.input[1], offset[1] + d) - sums[2], sums[3]);
    sum[0] += grad * g.logit;
    sum[1] += grad * g.value;
  }
};

}  // namespace

namespace cuda {

void marginalize_labels(const MarginalizeLabels& p, void* stream) {
  constexpr int64_t kRowsPerBlock = kBlock / 32;
  with_stored_type(p.plan.dtype, [&](auto type) {
    const unsigned blocks = unsigned((p.plan.outer.rows + kRowsPerBlock - 1) / kRowsPerBlock);
    forward<decltype(type)><<<blocks, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("marginalize_labels");
  });
}

void marginalize_labels_backward(const MarginalizeLabelsBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 4>("marginalize_labels_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

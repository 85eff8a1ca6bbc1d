#include "kernels/gaussian_merge.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

template <class Stored>
__global__ void __launch_bounds__(kBlock) forward(GaussianMerge p) {
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (index >= p.plan.outer.rows * p.plan.dim) return;
  const int64_t d = index % p.plan.dim;
  int64_t offset[4] = {};
  row_offsets(p.plan.outer, 4, index / p.plan.dim, offset);
  const auto merged = merge(load<Stored>(p.input[0], offset[0] + d), load<Stored>(p.input[1], offset[1] + d),
                            load<Stored>(p.input[2], offset[2] + d), load<Stored>(p.input[3], offset[3] + d));
  store<Stored>(p.mean, index, merged.mean);
  store<Stored>(p.log_var, index, merged.log_var);
}

template <class Stored>
struct Backward {
  GaussianMergeBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[4]) const {
    const auto g = merge_gradients(load<Stored>(p.input[0], offset[0] + d), load<Stored>(p.input[1], offset[1] + d),
                                   load<Stored>(p.input[2], offset[2] + d), load<Stored>(p.input[3], offset[3] + d),
                                   load<Stored>(p.grad_mean, offset[4] + d), load<Stored>(p.grad_log_var, offset[5] + d));
    sum[0] += g.mean_q;
    sum[1] += g.log_var_q;
    sum[2] += g.mean_p;
    sum[3] += g.log_var_p;
  }
};

}  // namespace

namespace cuda {

void gaussian_merge(const GaussianMerge& p, void* stream) {
  const int64_t threads = p.plan.outer.rows * p.plan.dim;
  if (threads == 0) return;
  with_stored_type(p.plan.dtype, [&](auto type) {
    forward<decltype(type)><<<unsigned((threads + kBlock - 1) / kBlock), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("gaussian_merge");
  });
}

void gaussian_merge_backward(const GaussianMergeBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 6>("gaussian_merge_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

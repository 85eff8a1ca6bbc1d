#include "kernels/importance_bound.h"

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/row_loops.cuh"
#include "math/importance.h"

namespace dgmfast {
namespace {

// One block per row. Each thread keeps an online log-sum-exp of its share of the weights.
template <class Stored>
__global__ void __launch_bounds__(kBlock) forward(ImportanceBound p) {
  using R = Real<Stored>;
  int64_t offset[1] = {};
  row_offsets(p.plan.outer, 1, blockIdx.x, offset);
  LogSum<R> total;
  for (int64_t i = threadIdx.x; i < p.plan.dim; i += kBlock) total.add(load<Stored>(p.log_w, offset[0] + i));
  total = merge_over_block(total);
  if (threadIdx.x == 0) store<Stored>(p.bound, blockIdx.x, total.top + (::log(total.sum) - ::log(R(p.plan.dim))));
}

// Computes the same sum again, then each weight's share of it. The shares are not computed from the bound, because the bound has
// a rounding error of its own size.
template <class Stored>
__global__ void __launch_bounds__(kBlock) backward(ImportanceBoundBackward p) {
  using R = Real<Stored>;
  __shared__ R row[2];  // the largest log weight, and the factor of the weights relative to it
  int64_t offset[2] = {};
  row_offsets(p.plan.outer, 2, blockIdx.x, offset);
  LogSum<R> total;
  for (int64_t i = threadIdx.x; i < p.plan.dim; i += kBlock) total.add(load<Stored>(p.log_w, offset[0] + i));
  total = merge_over_block(total);
  if (threadIdx.x == 0) {
    row[0] = total.top;
    row[1] = total.sum == R(0) ? R(0) : load<Stored>(p.grad, offset[1]) / total.sum;  // if all weights are 0 there is no gradient
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.plan.dim; i += kBlock) {
    store<Stored>(p.grad_log_w, blockIdx.x * p.plan.dim + i,
                  row[1] * relative_weight(load<Stored>(p.log_w, offset[0] + i), row[0]));
  }
}

}  // namespace

namespace cuda {

void importance_bound(const ImportanceBound& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    forward<decltype(type)><<<unsigned(p.plan.outer.rows), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("importance_bound");
  });
}

void importance_bound_backward(const ImportanceBoundBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    backward<decltype(type)><<<unsigned(p.plan.outer.rows), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("importance_bound_backward");
  });
}

}  // namespace cuda
}  // namespace dgmfast

#include "kernels/importance_bound.h"

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/rows.cuh"
#include "math/importance.h"

namespace dgmfast {
namespace {

// One block per row; every thread keeps an online log-sum-exp of its share.
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

template <class Stored>
struct Backward {
  ImportanceBoundBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[1]) const {
    using R = Real<Stored>;
    const R log_sum = load<Stored>(p.bound, offset[1]) + ::log(R(p.plan.dim));
    sum[0] += load<Stored>(p.grad, offset[2]) * ::exp(load<Stored>(p.log_w, offset[0] + d) - log_sum);
  }
};

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
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 3>("importance_bound_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

#include "kernels/importance_state.h"

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/row_loops.cuh"
#include "math/importance.h"

namespace dgmfast {
namespace {

template <class Stored>
__global__ void __launch_bounds__(kBlock) update(ImportanceState p) {
  int64_t offset[2] = {};
  row_offsets(p.plan.outer, 2, blockIdx.x, offset);
  WeightState state;
  for (int64_t i = threadIdx.x; i < p.plan.dim; i += kBlock) state.add(double(load<Stored>(p.log_w, offset[0] + i)));
  state = merge_over_block(state);
  if (threadIdx.x == 0) {
    if (p.before) {
      WeightState before = read_state(p.before + offset[1]);
      before.merge(state);
      state = before;
    }
    write_state(p.after + blockIdx.x * int64_t(kStateSize), state);
  }
}

}  // namespace

namespace cuda {

void importance_state(const ImportanceState& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    update<decltype(type)><<<unsigned(p.plan.outer.rows), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("importance_state");
  });
}

}  // namespace cuda
}  // namespace dgmfast

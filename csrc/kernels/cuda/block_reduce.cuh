// Merges the states of a block's threads, one state per thread, into one.
#pragma once

#include "kernels/cuda/row_loops.cuh"

namespace dgmfast {
namespace {

// State is a plain struct with `merge(State)`. The result is valid in the block's first thread. blockDim.x must be kBlock.
template <class State>
__device__ __forceinline__ State merge_over_block(State state) {
  __shared__ alignas(State) unsigned char memory[sizeof(State) * kBlock];
  State* shared = reinterpret_cast<State*>(memory);
  shared[threadIdx.x] = state;
  for (int step = kBlock / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared[threadIdx.x].merge(shared[threadIdx.x + step]);
  }
  return shared[0];
}

}  // namespace
}  // namespace dgmfast

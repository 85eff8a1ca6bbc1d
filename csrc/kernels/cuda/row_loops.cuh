// Loops over rows and columns that the CUDA kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels/row_plan.h"
#include "math/portability.h"

namespace dgmfast {
namespace {

constexpr int kBlock = 256;

// Numbers are stored as Stored and computed as Real, which is float for the 16-bit types.
template <class Stored>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class Stored>
using Real = typename RealOf<Stored>::type;

template <class Stored>
__device__ __forceinline__ Real<Stored> load(const void* base, int64_t i) {
  return static_cast<Real<Stored>>(static_cast<const Stored*>(base)[i]);
}
template <class Stored>
__device__ __forceinline__ void store(void* base, int64_t i, Real<Stored> value) {
  static_cast<Stored*>(base)[i] = static_cast<Stored>(value);
}

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

template <class Body>
void with_stored_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::f64:
      return body(double());
    case DType::f16:
      return body(__half());
    case DType::bf16:
      return body(__nv_bfloat16());
    default:
      return body(float());
  }
}

__device__ __forceinline__ void row_offsets(const Grid& grid, int inputs, int64_t row, int64_t* offset) {
  for (int d = grid.dims - 1; d >= 0; --d) {
    const int64_t index = d ? row % grid.size[d] : row;
    row = d ? row / grid.size[d] : 0;
    for (int i = 0; i < inputs; ++i) offset[i] += index * grid.stride[i][d];
  }
}

template <class T>
__device__ __forceinline__ T sum_over_warp(T value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lane);
  return value;
}

template <class T>
__device__ __forceinline__ T max_over_warp(T value) {  // a NaN of another lane is never the maximum
  for (int lane = 16; lane > 0; lane /= 2) value = maximum(__shfl_xor_sync(0xFFFFFFFFu, value, lane), value);
  return value;
}

// Returns the sum over a block, which is valid in the block's first thread.
template <class T>
__device__ __forceinline__ T sum_over_block(T value) {
  __shared__ T partial[32];
  const int warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  value = sum_over_warp(value);
  if (threadIdx.x % 32 == 0) partial[warp] = value;
  __syncthreads();
  value = threadIdx.x < warps ? partial[threadIdx.x] : T(0);
  return warp == 0 ? sum_over_warp(value) : value;
}

// V neighbouring numbers, which are read by one load of up to 16 bytes.
template <class Stored, int V>
struct alignas(sizeof(Stored) * V) Pack {
  Stored value[V];
};

template <class Stored, int V, class Real>
__device__ __forceinline__ void load_pack(const void* base, int64_t i, Real (&out)[V]) {
  const auto pack = *reinterpret_cast<const Pack<Stored, V>*>(static_cast<const Stored*>(base) + i);
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = static_cast<Real>(pack.value[v]);
}

// Returns whether the rows of every input may be read in packs of v numbers.
inline bool packs(const RowPlan& plan, int v, const void* const* inputs, const int* bytes, int n) {
  if (plan.dim % v) return false;
  for (int i = 0; i < n; ++i) {
    if (!inputs[i]) continue;
    if (reinterpret_cast<uintptr_t>(inputs[i]) % (v * bytes[i])) return false;
    for (int d = 0; d < plan.outer.dims; ++d) {
      if (plan.outer.stride[i][d] % v) return false;
    }
  }
  return true;
}

// A lane's part of its row's sum, for a body that needs nothing but the sum.
template <class R>
struct PlainSum {
  R sum = 0;
  __device__ __forceinline__ R total() const { return sum; }
};

// Computes out[row] = body.finish(sum, dim), where body.add<V>(sum, offset, d) adds V numbers to a lane's sum, and the lanes'
// totals are added up. A row takes one warp, or one block if it is long.
template <class Stored, int V, int kInputs, int kThreads, class Body>
__global__ void __launch_bounds__(kBlock) sum_rows(RowPlan plan, Body body, void* out) {
  const int64_t row = (int64_t(blockIdx.x) * kBlock + threadIdx.x) / kThreads;
  if (row >= plan.outer.rows) return;
  int64_t offset[kInputs] = {};
  row_offsets(plan.outer, kInputs, row, offset);
  typename Body::Sum own;
  for (int64_t d = int64_t(threadIdx.x % kThreads) * V; d < plan.dim; d += kThreads * V) {
    body.template add<V>(own, offset, d);
  }
  Real<Stored> sum = own.total();
  if constexpr (kThreads == 32) {
    sum = sum_over_warp(sum);
  } else {
    sum = sum_over_block(sum);
  }
  if (threadIdx.x % kThreads == 0) store<Stored>(out, row, body.finish(sum, plan.dim));
}

template <class Stored, int kInputs, class Body>
void launch_sum_rows(const char* name, const RowPlan& plan, const Body& body, const void* const* inputs, const int* bytes,
                     void* out, void* stream) {
  constexpr int64_t kLong = 4096;
  constexpr int kPack = sizeof(Stored) >= 8 ? 2 : 4;
  const auto launch = [&](auto kernel, int64_t rows_per_block) {
    kernel<<<unsigned((plan.outer.rows + rows_per_block - 1) / rows_per_block), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        plan, body, out);
    check_launch(name);
  };
  const bool pack = packs(plan, kPack, inputs, bytes, kInputs);
  if (plan.dim > kLong)
    return pack ? launch(sum_rows<Stored, kPack, kInputs, kBlock, Body>, 1)
                : launch(sum_rows<Stored, 1, kInputs, kBlock, Body>, 1);
  return pack ? launch(sum_rows<Stored, kPack, kInputs, 32, Body>, kBlock / 32)
              : launch(sum_rows<Stored, 1, kInputs, 32, Body>, kBlock / 32);
}

template <int kGradients>
struct Outputs {
  void* pointer[kGradients];
};

// Each thread sums the gradients of one column of one outer row over a segment of the inner rows. `body(offset, d, grads)` adds
// the gradients of one row. Neighbouring threads take neighbouring columns, so that loads and stores coalesce.
template <class Stored, int kInputs, int kGradients, class Body>
__global__ void __launch_bounds__(kBlock) sum_gradients(RowPlan plan, Body body, Outputs<kGradients> out) {
  const int64_t targets = plan.outer.rows * plan.dim;
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (index >= targets * plan.segments) return;
  const int64_t segment = index / targets, target = index % targets;
  const int64_t row = target / plan.dim, d = target % plan.dim;
  int64_t outer[kInputs] = {};
  row_offsets(plan.outer, kInputs, row, outer);
  Real<Stored> sum[kGradients] = {};
  for (int64_t inner = segment; inner < plan.inner.rows; inner += plan.segments) {
    int64_t offset[kInputs];
    for (int i = 0; i < kInputs; ++i) offset[i] = outer[i];
    row_offsets(plan.inner, kInputs, inner, offset);
    body(offset, d, sum);
  }
  for (int i = 0; i < kGradients; ++i) {
    if (!out.pointer[i]) continue;
    if (plan.segments > 1) {
      store<Real<Stored>>(out.pointer[i], index, sum[i]);
    } else {
      store<Stored>(out.pointer[i], index, sum[i]);
    }
  }
}

template <class Stored, int kInputs, int kGradients, class Body>
void launch_sum_gradients(const char* name, const RowPlan& plan, const Body& body, void* const (&grads)[kGradients],
                          void* stream) {
  Outputs<kGradients> out;
  for (int i = 0; i < kGradients; ++i) out.pointer[i] = grads[i];
  const int64_t threads = plan.outer.rows * plan.dim * plan.segments;
  sum_gradients<Stored, kInputs, kGradients, Body>
      <<<unsigned((threads + kBlock - 1) / kBlock), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(plan, body, out);
  check_launch(name);
}

}  // namespace
}  // namespace dgmfast

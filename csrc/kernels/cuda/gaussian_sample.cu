#include "kernels/gaussian_sample.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/gaussian.h"
#include "math/philox.h"

namespace dgmfast {
namespace {

constexpr int kDrawsPerWord = 4;

// Returns the four normals of one counter word of row `index`: dimensions 64 g + j + {0, 16, 32, 48}, where word = 16 g + j.
template <class R>
__device__ __forceinline__ Normals<R> draw(const NoiseKey& key, int64_t index, uint32_t word) {
  const uint64_t seed = uint64_t(key.seed_on_device ? *key.seed_on_device : key.seed);
  const PhiloxWords counter{word, key.first_sample + uint32_t(index % key.samples), key.first_row + uint32_t(index / key.samples),
                            key.stream};
  return normals<R>(counter, uint32_t(seed), uint32_t(seed >> 32));
}

__device__ __forceinline__ int64_t first_dimension(int64_t word) { return word / kLanes * kNoiseGroup + word % kLanes; }

// Each warp draws one row, and each lane takes whole counter words.
template <class Stored>
__global__ void __launch_bounds__(kBlock) forward(GaussianSample p) {
  using R = Real<Stored>;
  const int64_t row = (int64_t(blockIdx.x) * kBlock + threadIdx.x) / 32;
  if (row >= p.plan.outer.rows) return;
  int64_t offset[2] = {};
  row_offsets(p.plan.outer, 2, row, offset);
  const int64_t words = (p.plan.dim + kNoiseGroup - 1) / kNoiseGroup * kLanes;
  R sum = 0;
  for (int64_t word = threadIdx.x % 32; word < words; word += 32) {
    const Normals<R> n = draw<R>(p.key, row, uint32_t(word));
    const R noise[kDrawsPerWord] = {n.a, n.b, n.c, n.d};
    for (int i = 0; i < kDrawsPerWord; ++i) {
      const int64_t d = first_dimension(word) + i * kLanes;
      if (d >= p.plan.dim) break;
      const R log_var = load<Stored>(p.log_var, offset[1] + d);
      store<Stored>(p.z, row * p.plan.dim + d, load<Stored>(p.mean, offset[0] + d) + ::exp(R(0.5) * log_var) * noise[i]);
      sum += log_var + noise[i] * noise[i];
    }
  }
  sum = sum_over_warp(sum);
  if (threadIdx.x % 32 == 0) store<Stored>(p.log_q, row, R(-0.5) * (sum + R(p.plan.dim) * R(kLog2Pi)));
}

template <class Stored>
struct Backward {
  GaussianSampleBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[2]) const {
    using R = Real<Stored>;
    const uint32_t word = uint32_t(d / kNoiseGroup * kLanes + d % kLanes);
    const Normals<R> n = draw<R>(p.key, offset[4], word);
    const int which = int(d % kNoiseGroup / kLanes);
    const R noise = which == 0 ? n.a : which == 1 ? n.b : which == 2 ? n.c : n.d;
    const R grad_z = load<Stored>(p.grad_z, offset[2] + d), log_var = load<Stored>(p.log_var, offset[1] + d);
    sum[0] += grad_z;
    sum[1] += R(0.5) * (grad_z * ::exp(R(0.5) * log_var) * noise - load<Stored>(p.grad_log_q, offset[3]));
  }
};

}  // namespace

namespace cuda {

void gaussian_sample(const GaussianSample& p, void* stream) {
  constexpr int64_t kRowsPerBlock = kBlock / 32;
  with_stored_type(p.plan.dtype, [&](auto type) {
    const unsigned blocks = unsigned((p.plan.outer.rows + kRowsPerBlock - 1) / kRowsPerBlock);
    forward<decltype(type)><<<blocks, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("gaussian_sample");
  });
}

void gaussian_sample_backward(const GaussianSampleBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 5>("gaussian_sample_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

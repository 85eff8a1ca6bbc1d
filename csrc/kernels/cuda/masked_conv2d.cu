// masked_conv2d as an implicit GEMM: x is gathered through the (channel, tap) list and never materialised. Sums are float32, or
// float64 for float64 inputs.
#include "kernels/masked_conv2d.h"

#include "kernels/cuda/row_loops.cuh"

namespace dgmfast {
namespace {

constexpr int kTile = 64, kDepth = 16;  // a block of kBlock threads computes kTile × kTile results, kDepth summands at a time
constexpr int kSide = 16, kOwn = kTile / kSide;
static_assert(kSide * kSide == kBlock);

struct Tap {
  int channel, tap;  // channel is -1 if there is no entry
  int row, column;   // the position that the tap reads, relative to the pixel
};

__device__ __forceinline__ Tap tap_at(const MaskedTaps& t, int channel, int tap, bool transposed) {
  const int columns = int(t.columns), row = tap / columns - int(t.rows) / 2, column = tap % columns - columns / 2;
  return {channel, tap, transposed ? -row : row, transposed ? -column : column};
}

// Returns entry k of the list that MaskedTaps describes.
__device__ Tap entry_at(const MaskedTaps& t, bool transposed, int64_t k) {
  const int64_t before = t.before(), all = t.all();
  if (k >= (transposed ? t.sources() : t.entries())) return {-1, 0, 0, 0};
  if (transposed) {
    if (k < t.outputs * before) return tap_at(t, int(k / before), int(k % before), true);
    k -= t.outputs * before;
    if (k < t.outputs) return tap_at(t, int(t.outputs - 1 - k), int(before), true);
    k -= t.outputs;
    return tap_at(t, int(k / before), int(before + 1 + k % before), true);
  }
  if (k < t.masked() * before) return tap_at(t, int(t.unmasked + k / before), int(k % before), false);
  k -= t.masked() * before;
  if (k < t.unmasked * all) return tap_at(t, int(k / all), int(k % all), false);
  return tap_at(t, int(t.unmasked + k - t.unmasked * all), int(before), false);
}

struct Pixel {
  int64_t image;  // -1 beyond the last pixel
  int row, column;
};

__device__ __forceinline__ Pixel pixel_at(int64_t index, int64_t end, int64_t height, int64_t width) {
  if (index >= end) return {-1, 0, 0};
  const int64_t row = index / width;
  return {row / height, int(row % height), int(index % width)};
}

// Returns the value of x, [N, C, H, W], that a tap reads from a pixel. It is 0 outside the image.
template <class Stored>
__device__ __forceinline__ Real<Stored> seen(const void* x, const int64_t (&stride)[4], const Pixel& at, const Tap& tap,
                                             int64_t height, int64_t width) {
  const int row = at.row + tap.row, column = at.column + tap.column;
  if (at.image < 0 || tap.channel < 0 || row < 0 || row >= height || column < 0 || column >= width) return 0;
  return load<Stored>(x, at.image * stride[0] + tap.channel * stride[1] + row * stride[2] + column * stride[3]);
}

// Computes sum[i][j] += Σ_d a[d][row i] b[d][column j], where row i and column j are the thread's own: every kSide-th row and
// column of the tile.
template <class T>
__device__ __forceinline__ void add_tile(const T (&a)[kDepth][kTile + 1], const T (&b)[kDepth][kTile + 1], T (&sum)[kOwn][kOwn]) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    T left[kOwn], right[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) left[i] = a[d][x + kSide * i], right[i] = b[d][y + kSide * i];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) sum[i][j] += left[i] * right[j];
    }
  }
}

// Computes the convolution. Each block computes a tile of pixels × output channels.
template <class Stored>
__global__ void __launch_bounds__(kBlock) convolve(MaskedConv2d p) {
  using T = Real<Stored>;
  __shared__ T value[kDepth][kTile + 1], weight[kDepth][kTile + 1];
  __shared__ Tap taps[kDepth];
  const MaskedTaps& t = p.taps;
  const int64_t pixels = p.batch * p.height * p.width, first = int64_t(blockIdx.x) * kTile;
  const int64_t channel = int64_t(blockIdx.y) * kTile, own_channel = channel + threadIdx.x % kTile;
  const Pixel own = pixel_at(first + threadIdx.x % kTile, pixels, p.height, p.width);
  // a tile that holds only masked inputs has no taps after the centre
  const int64_t entries = p.transposed && channel >= t.unmasked ? t.outputs * (t.before() + 1) : p.entries();
  T sum[kOwn][kOwn] = {};
  for (int64_t begin = 0; begin < entries; begin += kDepth) {
    if (threadIdx.x < kDepth) taps[threadIdx.x] = entry_at(t, p.transposed, begin + threadIdx.x);
    __syncthreads();
    for (int d = threadIdx.x / kTile; d < kDepth; d += kBlock / kTile) {
      const Tap tap = taps[d];
      value[d][threadIdx.x % kTile] = seen<Stored>(p.x, p.x_stride, own, tap, p.height, p.width);
      const int64_t output = p.transposed ? tap.channel : own_channel, input = p.transposed ? own_channel : tap.channel;
      const bool allowed = tap.channel >= 0 && own_channel < p.out_channels() && t.allowed(output, input, tap.tap);
      weight[d][threadIdx.x % kTile] = allowed ? load<Stored>(p.weight, (output * t.inputs + input) * t.all() + tap.tap) : T(0);
    }
    __syncthreads();
    add_tile(value, weight, sum);  // the next barrier keeps the tiles until all threads are done with them
  }
  for (int i = 0; i < kOwn; ++i) {
    const Pixel at = pixel_at(first + threadIdx.x % kSide + kSide * i, pixels, p.height, p.width);
    if (at.image < 0) continue;
    for (int j = 0; j < kOwn; ++j) {
      const int64_t c = channel + threadIdx.x / kSide + kSide * j;
      if (c >= p.out_channels()) continue;
      const T bias = p.bias ? load<Stored>(p.bias, c) : T(0);
      store<Stored>(p.out,
                    at.image * p.out_stride[0] + c * p.out_stride[1] + at.row * p.out_stride[2] + at.column * p.out_stride[3],
                    sum[i][j] + bias);
    }
  }
}

// Computes the partial sums of the weight's gradient over one group of pixels. Each block computes a tile of entries × outputs.
// The entry after the last one reads ones, which gives the gradient of the bias.
template <class Stored>
__global__ void __launch_bounds__(kBlock) weight_gradient(MaskedConv2dWeight p) {
  using T = Real<Stored>;
  __shared__ T value[kDepth][kTile + 1], grad[kDepth][kTile + 1];
  __shared__ Tap taps[kTile];
  const MaskedTaps& t = p.taps;
  const int64_t entry = int64_t(blockIdx.x) * kTile, output = int64_t(blockIdx.y) * kTile, group = blockIdx.z;
  const int64_t last = minimum((group + 1) * p.group, p.batch * p.height * p.width);
  if (threadIdx.x < kTile) taps[threadIdx.x] = entry_at(t, false, entry + threadIdx.x);
  __syncthreads();
  T sum[kOwn][kOwn] = {};
  for (int64_t begin = group * p.group; begin < last; begin += kDepth) {
    const int d = threadIdx.x % kDepth;
    const Pixel at = pixel_at(begin + d, last, p.height, p.width);
    for (int i = threadIdx.x / kDepth; i < kTile; i += kBlock / kDepth) {
      const bool bias = entry + i == t.entries();
      value[d][i] = bias ? T(1) : seen<Stored>(p.x, p.x_stride, at, taps[i], p.height, p.width);
      const Tap itself{output + i < t.outputs ? int(output + i) : -1, 0, 0, 0};
      grad[d][i] = seen<Stored>(p.grad, p.grad_stride, at, itself, p.height, p.width);
    }
    __syncthreads();
    add_tile(value, grad, sum);
    __syncthreads();
  }
  for (int i = 0; i < kOwn; ++i) {
    const int64_t k = entry + threadIdx.x % kSide + kSide * i;
    for (int j = 0; j < kOwn && k <= t.entries(); ++j) {
      const int64_t o = output + threadIdx.x / kSide + kSide * j;
      if (o < t.outputs) static_cast<T*>(p.partial)[(group * (t.entries() + 1) + k) * t.outputs + o] = sum[i][j];
    }
  }
}

// Each thread adds up the partial sums of one weight. The remaining threads each add up those of one bias.
template <class Stored>
__global__ void __launch_bounds__(kBlock) sum_groups(MaskedConv2dWeight p) {
  const MaskedTaps& t = p.taps;
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x, o = index % t.outputs, weight = index / t.outputs;
  const int64_t weights = t.inputs * t.all(), input = weight / t.all(), tap = weight % t.all();
  if (weight > weights || (weight == weights && !p.grad_bias)) return;
  Real<Stored> sum = 0;
  if (weight == weights || t.allowed(o, input, tap)) {
    const int64_t k = weight == weights ? t.entries() : t.entry(input, tap);
    for (int64_t group = 0; group < p.groups; ++group) {
      sum += static_cast<const Real<Stored>*>(p.partial)[(group * (t.entries() + 1) + k) * t.outputs + o];
    }
  }
  if (weight == weights) {
    store<Stored>(p.grad_bias, o, sum);
  } else {
    store<Stored>(p.grad_weight, o * weights + weight, sum);
  }
}

unsigned blocks(int64_t n, int size) { return unsigned((n + size - 1) / size); }

}  // namespace

namespace cuda {

void masked_conv2d(const MaskedConv2d& p, void* stream) {
  with_stored_type(p.dtype, [&](auto type) {
    const dim3 grid(blocks(p.batch * p.height * p.width, kTile), blocks(p.out_channels(), kTile));
    convolve<decltype(type)><<<grid, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("masked_conv2d");
  });
}

void masked_conv2d_weight(const MaskedConv2dWeight& p, void* stream) {
  with_stored_type(p.dtype, [&](auto type) {
    const dim3 grid(blocks(p.taps.entries() + 1, kTile), blocks(p.taps.outputs, kTile), unsigned(p.groups));
    weight_gradient<decltype(type)><<<grid, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("masked_conv2d");
    const int64_t numbers = p.taps.outputs * (p.taps.inputs * p.taps.all() + 1);
    sum_groups<decltype(type)><<<blocks(numbers, kBlock), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
    check_launch("masked_conv2d");
  });
}

}  // namespace cuda
}  // namespace dgmfast

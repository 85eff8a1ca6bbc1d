// The gradients of the weight and the bias of masked_conv2d, as sums over pixels in vectors.
#include "kernels/cpu/masked_planes.h"
#include "kernels/masked_conv2d.h"

namespace dgmfast {
namespace {

// Adds the sum of the lanes of value[r] to to[r].
template <class T, int R>
DGMFAST_HOST_DEVICE void add_sums(const Vector<T> (&value)[R], T* to) {
  constexpr int lanes = Lanes<T>::count;
  typename Lanes<T>::Index other{};
  Vector<T> folded[R];
  DGMFAST_UNROLL
  for (int r = 0; r < R; ++r) folded[r] = value[r];
  DGMFAST_UNROLL
  for (int half = lanes / 2; half > 0; half /= 2) {
    DGMFAST_UNROLL
    for (int i = 0; i < lanes; ++i) other[i] = i ^ half;
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) folded[r] += __builtin_shuffle(folded[r], other);
  }
  DGMFAST_UNROLL
  for (int r = 0; r < R; ++r) to[r] += folded[r][0];
}

// Computes total[k][r] += Σ_i grad[r][i] x[offset[k] + i] for R outputs and K entries.
template <class T, int R, int K>
void add_products(const T* grad, int64_t plane, const T* x, const int64_t* offset, int64_t count, T* total, int64_t row) {
  constexpr int lanes = Lanes<T>::count;
  const T* source[K];
  Vector<T> sum[K][R];
  DGMFAST_UNROLL
  for (int k = 0; k < K; ++k) {
    source[k] = x + offset[k];
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) sum[k][r] = Vector<T>{};
  }
  for (int64_t i = 0; i < count; i += lanes) {
    Vector<T> value[K];
    DGMFAST_UNROLL
    for (int k = 0; k < K; ++k) value[k] = load(source[k] + i);
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vector<T> g = load(grad + r * plane + i);
      DGMFAST_UNROLL
      for (int k = 0; k < K; ++k) sum[k][r] = g * value[k] + sum[k][r];
    }
  }
  DGMFAST_UNROLL
  for (int k = 0; k < K; ++k) add_sums<T, R>(sum[k], total + k * row);
}

// Computes total[r] += Σ_i grad[r][i].
template <class T, int R>
void add_gradients(const T* grad, int64_t plane, int64_t count, T* total) {
  Vector<T> sum[R] = {};
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) sum[r] += load(grad + r * plane + i);
  }
  add_sums<T, R>(sum, total);
}

template <class T, int R>
void add_block(const T* grad, int64_t plane, const T* x, const int64_t* offset, int64_t entries, int64_t count, T* total,
               int64_t row) {
  constexpr int most = tile_vectors(R);
  int64_t k = 0;
  for (; k + most <= entries; k += most) add_products<T, R, most>(grad, plane, x, offset + k, count, total + k * row, row);
  if (k == entries) return;
  with_constant<most>(entries - k, [&](auto n) {
    add_products<T, R, decltype(n)::value>(grad, plane, x, offset + k, count, total + k * row, row);
  });
}

// An item is one group of images and one range of outputs. The margins take part in the sums with a gradient of 0. A NaN of x
// next to a margin therefore also reaches weights that multiply it at no pixel.
template <class T>
void weight_gradient(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  const MaskedTaps& t = p.taps;
  const PaddedPlanes planes = p.planes();
  PaddedPlanes rows_alone = planes;
  rows_alone.above = rows_alone.below = rows_alone.lead = 0;  // no neighbouring rows; without a lead the planes are aligned
  int64_t* offset = static_cast<int64_t*>(p.scratch);
  T* x = first_number<T>(offset, t.entries());
  T* grad = x + t.inputs * planes.size;
  list_offsets(t, false, planes, offset);
  clear(x, (t.inputs + p.part_outputs()) * planes.size);
  // positions of a strip, so that the strips of seven planes fit the first-level cache
  constexpr int64_t kLongest = 4096 / sizeof(T);
  const int64_t positions = p.height * planes.pitch, bias = t.entries() * t.outputs;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / p.parts, first = item % p.parts * p.part_outputs();
    const int64_t outputs = minimum(p.part_outputs(), t.outputs - first);
    if (outputs <= 0) continue;
    T* total = static_cast<T*>(p.partial) + group * (t.entries() + 1) * t.outputs + first;
    for (int64_t k = 0; k <= t.entries(); ++k) clear(total + k * t.outputs, outputs);
    for (int64_t image = group * p.group; image < minimum((group + 1) * p.group, p.batch); ++image) {
      fill(planes, x, static_cast<const T*>(p.x) + image * p.x_stride[0], p.x_stride, t.inputs, 0, p.height, p.height, p.width);
      fill(rows_alone, grad, static_cast<const T*>(p.grad) + image * p.grad_stride[0] + first * p.grad_stride[1], p.grad_stride,
           outputs, 0, p.height, p.height, p.width);
      for (int64_t at = 0; at < positions; at += kLongest) {
        const int64_t count = minimum(kLongest, positions - at);
        for (int64_t o = 0; o < outputs;) {
          const Block block = block_of(t, false, first + o);
          const int64_t channels = minimum(block.first + block.count - first, outputs) - o;
          const T* source = grad + o * planes.size + at;
          with_constant<kConvBlock>(channels, [&](auto n) {
            constexpr int R = decltype(n)::value;
            add_block<T, R>(source, planes.size, x + planes.lead + at, offset, t.entries_of(first + o), count, total + o,
                            t.outputs);
            add_gradients<T, R>(source, planes.size, count, total + bias + o);
          });
          o += channels;
        }
      }
    }
  }
}

// An item is kConvOutputs outputs. An output that does not see an entry has a partial sum of 0 there.
template <class T>
void sum_groups(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  const MaskedTaps& t = p.taps;
  for (int64_t first = begin * kConvOutputs; first < minimum(end * kConvOutputs, t.outputs); first += kConvOutputs) {
    const int64_t outputs = minimum(kConvOutputs, t.outputs - first);
    const T* partial = static_cast<const T*>(p.partial) + first;
    T sum[kConvOutputs];
    const auto add_groups = [&] {
      for (int64_t o = 0; o < outputs; ++o) sum[o] = partial[o];
      for (int64_t group = 1; group < p.groups; ++group) {
        const T* more = partial + group * (t.entries() + 1) * t.outputs;
        for (int64_t o = 0; o < outputs; ++o) sum[o] += more[o];
      }
      partial += t.outputs;
    };
    T* grad = static_cast<T*>(p.grad_weight) + first * t.inputs * t.all();
    clear(grad, outputs * t.inputs * t.all());
    for_each_entry(t, false, [&](int64_t input, int64_t tap) {
      add_groups();
      for (int64_t o = 0; o < outputs; ++o) grad[(o * t.inputs + input) * t.all() + tap] = sum[o];
    });
    add_groups();
    for (int64_t o = 0; o < outputs && p.grad_bias; ++o) static_cast<T*>(p.grad_bias)[first + o] = sum[o];
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void masked_conv2d_weight(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { weight_gradient<decltype(type)>(p, begin, end); });
}

void masked_conv2d_weight_sum(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { sum_groups<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

// A convolution over the taps that a mask leaves. Vectors run over pixels, registers hold a tile of channels × pixels.
#include "kernels/masked_conv2d.h"

#include "kernels/cpu/rows.h"

namespace dgmfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Written with vector types, because the compiler keeps no tile of sums in registers for an `omp simd` loop.
template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  typedef typename Bits<T>::Int Index __attribute__((vector_size(kVectorBytes)));
  static constexpr int count = kVectorBytes / sizeof(T);
};
template <class T>
using Vector = typename Lanes<T>::Vector;

template <class T>
DGMFAST_FN Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
DGMFAST_FN void store(T* to, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

// Vectors beside `rows` channels: the most sums that leave registers for the operands, and at least eight to hide the latency.
constexpr int tile_vectors(int rows) { return rows == 1 ? 8 : 12 / rows; }

// body(channel, tap) for the list that MaskedTaps describes, in order.
template <class Body>
DGMFAST_FN void for_each_entry(const MaskedTaps& t, bool transposed, Body body) {
  if (transposed) {
    for (int64_t o = 0; o < t.outputs; ++o) {
      for (int64_t tap = 0; tap < t.before(); ++tap) body(o, tap);
    }
    for (int64_t o = t.outputs - 1; o >= 0; --o) body(o, t.before());
    for (int64_t o = 0; o < t.outputs && t.unmasked; ++o) {
      for (int64_t tap = t.before() + 1; tap < t.all(); ++tap) body(o, tap);
    }
    return;
  }
  for (int64_t c = t.unmasked; c < t.inputs; ++c) {
    for (int64_t tap = 0; tap < t.before(); ++tap) body(c, tap);
  }
  for (int64_t c = 0; c < t.unmasked; ++c) {
    for (int64_t tap = 0; tap < t.all(); ++tap) body(c, tap);
  }
  for (int64_t c = t.unmasked; c < t.inputs; ++c) body(c, t.before());
}

inline void list_offsets(const MaskedTaps& taps, bool transposed, const PaddedPlanes& planes, int64_t* offset) {
  for_each_entry(taps, transposed,
                 [&](int64_t channel, int64_t tap) { *offset++ = channel * planes.size + planes.offset(taps, transposed, tap); });
}

template <class T>
DGMFAST_FN T* first_number(int64_t* offset, int64_t entries) {
  return reinterpret_cast<T*>(offset + (entries + 7) / 8 * 8);
}

// Channels that are made together: neighbours of one group, because those see the same.
struct Block {
  int64_t first, count;
};

inline Block block_from(int64_t channel, int64_t first, int64_t group) {
  const int64_t start = first + (group ? (channel - first) / group * group : 0);
  const int64_t block = start + (channel - start) / kConvBlock * kConvBlock;
  return {block, minimum(kConvBlock, start + group - block)};
}
inline Block block_of(const MaskedTaps& taps, bool transposed, int64_t channel) {
  if (!transposed) return block_from(channel, 0, taps.group_out());
  if (channel < taps.unmasked) return block_from(channel, 0, taps.unmasked);
  return block_from(channel, taps.unmasked, taps.group_in());
}

template <class T>
void pack(const MaskedConv2d& p, int64_t begin, int64_t end) {
  const MaskedTaps& t = p.taps;
  for (int64_t channel = begin; channel < end; ++channel) {
    const Block block = block_of(t, p.transposed, channel);
    T* packed = static_cast<T*>(p.packed) + block.first * p.entries() + channel - block.first;
    int64_t left = p.entries_of(channel);
    for_each_entry(t, p.transposed, [&](int64_t source, int64_t tap) {
      if (left-- <= 0) return;
      const int64_t output = p.transposed ? source : channel, input = p.transposed ? channel : source;
      *packed = static_cast<const T*>(p.weight)[(output * t.inputs + input) * t.all() + tap];
      packed += block.count;
    });
  }
}

template <class T>
DGMFAST_FN void copy(T* to, const T* from, int64_t n) {
  constexpr int64_t lanes = Lanes<T>::count;
  if (n < lanes) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t at = minimum(i, n - lanes);
    store(to + at, load(from + at));
  }
}

template <class T>
DGMFAST_FN void clear(T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = T(0);
}

// The rows [first, first + rows) of an image with those around them; margins are zero before.
template <class T>
void fill(const PaddedPlanes& planes, T* to, const T* x, const int64_t (&stride)[4], int64_t channels, int64_t first,
          int64_t rows, int64_t height, int64_t width) {
  constexpr int64_t kColumnsAtOnce = 16;
  const bool by_channel = stride[1] != 1 || stride[3] == 1;
  for (int64_t row = -planes.above; row < rows + planes.below; ++row) {
    const bool inside = first + row >= 0 && first + row < height;
    const T* from = inside && channels > 0 ? x + (first + row) * stride[2] : nullptr;
    T* target = to + planes.lead + row * planes.pitch;
    for (int64_t c = 0; c < channels && (!inside || by_channel); ++c) {
      if (!inside) {
        clear(target + c * planes.size, width);
      } else if (stride[3] == 1) {
        copy(target + c * planes.size, from + c * stride[1], width);
      } else {
        for (int64_t i = 0; i < width; ++i) target[c * planes.size + i] = from[c * stride[1] + i * stride[3]];
      }
    }
    if (!inside || by_channel) continue;
    for (int64_t column = 0; column < width; column += kColumnsAtOnce) {
      const int64_t last = minimum(column + kColumnsAtOnce, width);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = column; i < last; ++i) target[c * planes.size + i] = from[i * stride[3] + c];
      }
    }
  }
}

// out[r][i] = bias[r] + Σ_k weight[k][r] x[offset[k] + i] for R channels and V vectors of positions, of which the last one begins
// at `last`; without a bias it is added.
template <class T, int R, int V>
void add_tile(const T* x, const int64_t* offset, const T* weight, int64_t entries, const T* bias, T* out, int64_t row,
              int64_t last) {
  constexpr int lanes = Lanes<T>::count;
  Vector<T> sum[R][V];
  DGMFAST_UNROLL
  for (int r = 0; r < R; ++r) {
    DGMFAST_UNROLL
    for (int v = 0; v < V; ++v) {
      sum[r][v] = bias ? bias[r] - Vector<T>{} : load(out + r * row + (v + 1 < V ? v * lanes : last));
    }
  }
  for (int64_t k = 0; k < entries; ++k, weight += R) {
    const T* source = x + offset[k];
    Vector<T> value[V];
    DGMFAST_UNROLL
    for (int v = 0; v < V; ++v) value[v] = load(source + (v + 1 < V ? v * lanes : last));
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      DGMFAST_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = weight[r] * value[v] + sum[r][v];
    }
  }
  DGMFAST_UNROLL
  for (int r = 0; r < R; ++r) {
    DGMFAST_UNROLL
    for (int v = 0; v < V; ++v) store(out + r * row + (v + 1 < V ? v * lanes : last), sum[r][v]);
  }
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// body(Constant<n>), 1 <= n <= kMost.
template <int kMost, class Body>
DGMFAST_FN void with_constant(int64_t n, Body body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, body);
  }
  body(Constant<kMost>());
}

// Positions [0, count) in tiles alike in size. The last vector ends with the last position where `exact`, which needs a vector of
// them, or beyond.
template <class T, int R>
void add_positions(const T* x, const int64_t* offset, const T* weight, int64_t entries, const T* bias, int64_t count, bool exact,
                   T* out, int64_t row) {
  constexpr int64_t lanes = Lanes<T>::count, most = tile_vectors(R);
  const int64_t vectors = (count + lanes - 1) / lanes, tiles = (vectors + most - 1) / most;
  for (int64_t i = 0, at = 0; i < tiles; ++i) {
    const int64_t n = vectors * (i + 1) / tiles - vectors * i / tiles;
    const int64_t last = exact ? minimum((n - 1) * lanes, count - lanes - at) : (n - 1) * lanes;
    with_constant<most>(
        n, [&](auto own) { add_tile<T, R, decltype(own)::value>(x + at, offset, weight, entries, bias, out + at, row, last); });
    at += n * lanes;
  }
}

// The strip of a block's channels that begins at position `first` of the rows `out`, without the margins.
template <class T>
void write_strip(const T* strip, int64_t strip_row, int64_t channels, int64_t first, int64_t count, int64_t pitch, int64_t width,
                 T* out, const int64_t (&stride)[4]) {
  for (int64_t row = first / pitch; row * pitch < first + count; ++row) {
    const int64_t begin = row * pitch > first ? 0 : first - row * pitch, end = minimum(width, first + count - row * pitch);
    const int64_t from = row * pitch + begin - first;
    T* to = out + row * stride[2] + begin * stride[3];
    if (stride[3] == 1) {
      for (int64_t r = 0; r < channels && begin < end; ++r) copy(to + r * stride[1], strip + r * strip_row + from, end - begin);
    } else if (channels == kConvBlock && stride[1] == 1) {
      for (int64_t i = 0; i < end - begin; ++i) {
        for (int64_t r = 0; r < kConvBlock; ++r) to[i * stride[3] + r] = strip[r * strip_row + from + i];
      }
    } else {
      for (int64_t i = 0; i < end - begin; ++i) {
        for (int64_t r = 0; r < channels; ++r) to[i * stride[3] + r * stride[1]] = strip[r * strip_row + from + i];
      }
    }
  }
}

// Whether it is faster to make rows in place, with vectors that overlap at their ends, than to make rows with their margins in a
// strip and to copy that: cycles per position and channel, as the strip's are about eight multiply-adds more.
template <class T>
bool by_rows(const MaskedConv2d& p) {
  constexpr int64_t lanes = Lanes<T>::count;
  if (p.portions() > 1 || p.out_stride[3] != 1 || p.width < lanes) return false;
  const int64_t columns = (p.width + lanes - 1) / lanes * lanes;
  return columns * p.entries() < p.planes().pitch * (p.entries() + 8);
}

template <class T>
void convolve_rows(const MaskedConv2d& p, const T* x, const int64_t* offset, int64_t rows, T* out) {
  const int64_t pitch = p.planes().pitch, at_once = maximum(p.chunk / pitch, int64_t(1));
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    for (int64_t channel = 0; channel < p.out_channels();) {
      const Block block = block_of(p.taps, p.transposed, channel);
      T bias[kConvBlock] = {};
      for (int64_t r = 0; r < block.count && p.bias; ++r) bias[r] = static_cast<const T*>(p.bias)[channel + r];
      const T* weight = static_cast<const T*>(p.packed) + channel * p.entries();
      const int64_t entries = p.entries_of(channel);
      with_constant<kConvBlock>(block.count, [&](auto channels) {
        for (int64_t row = begin; row < minimum(begin + at_once, rows); ++row) {
          add_positions<T, decltype(channels)::value>(x + row * pitch, offset, weight, entries, bias, p.width, true,
                                                      out + channel * p.out_stride[1] + row * p.out_stride[2], p.out_stride[1]);
        }
      });
      channel += block.count;
    }
  }
}

// The positions [at, at + count) of an item's rows `out`.
template <class T>
void convolve_chunk(const MaskedConv2d& p, const T* x, const int64_t* offset, int64_t at, int64_t count, T* strips, T* out) {
  const int64_t portions = maximum(p.portions(), int64_t(1)), pitch = p.planes().pitch;
  const int64_t portion = maximum((p.entries() + portions - 1) / portions, int64_t(1));
  for (int64_t begin = 0; begin == 0 || begin < p.entries(); begin += portion) {
    for (int64_t channel = 0; channel < p.out_channels();) {
      const int64_t first = channel, entries = p.entries_of(channel);
      const Block block = block_of(p.taps, p.transposed, first);
      channel += block.count;
      if (begin > 0 && begin >= entries) continue;
      T* strip = strips + (p.portions() > 1 ? first * p.chunk : 0);
      T bias[kConvBlock] = {};
      for (int64_t r = 0; r < block.count && p.bias; ++r) bias[r] = static_cast<const T*>(p.bias)[first + r];
      const T* weight = static_cast<const T*>(p.packed) + first * p.entries() + begin * block.count;
      with_constant<kConvBlock>(block.count, [&](auto channels) {
        add_positions<T, decltype(channels)::value>(x + at, offset + begin, weight, minimum(portion, entries - begin),
                                                    begin == 0 ? bias : nullptr, count, false, strip, p.chunk);
      });
      if (begin + portion < entries) continue;
      write_strip(strip, p.chunk, block.count, at, count, pitch, p.width, out + first * p.out_stride[1], p.out_stride);
    }
  }
}

template <class T>
void convolve(const MaskedConv2d& p, int64_t begin, int64_t end) {
  const PaddedPlanes planes = p.planes();
  int64_t* offset = static_cast<int64_t*>(p.scratch);
  T* x = first_number<T>(offset, p.entries());
  T* strips = x + p.channels() * planes.size;
  list_offsets(p.taps, p.transposed, planes, offset);
  clear(x, p.channels() * planes.size);
  const int64_t band_rows = p.band_rows();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / p.bands, first = item % p.bands * band_rows, rows = minimum(band_rows, p.height - first);
    if (rows <= 0) continue;
    fill(planes, x, static_cast<const T*>(p.x) + image * p.x_stride[0], p.x_stride, p.channels(), first, rows, p.height, p.width);
    T* out = static_cast<T*>(p.out) + image * p.out_stride[0] + first * p.out_stride[2];
    const int64_t positions = by_rows<T>(p) ? 0 : (rows - 1) * planes.pitch + p.width;
    if (by_rows<T>(p)) convolve_rows(p, x + planes.lead, offset, rows, out);
    for (int64_t at = 0; at < positions; at += p.chunk) {
      convolve_chunk(p, x + planes.lead, offset, at, minimum(p.chunk, positions - at), strips, out);
    }
  }
}

// to[r] += the sum of value[r]'s numbers.
template <class T, int R>
DGMFAST_FN void add_sums(const Vector<T> (&value)[R], T* to) {
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

// total[k][r] += Σ_i grad[r][i] x[offset[k] + i] for R outputs and K entries.
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

// total[r] += Σ_i grad[r][i]
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

// An item is a group of images with a range of outputs. Margins take part with a gradient of zero, so a NaN of x beside one also
// reaches weights that see it from no pixel.
template <class T>
void weight_gradient(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  const MaskedTaps& t = p.taps;
  const PaddedPlanes planes = p.planes();
  PaddedPlanes rows_alone = planes;
  rows_alone.above = rows_alone.below = rows_alone.lead = 0;  // which aligns them
  int64_t* offset = static_cast<int64_t*>(p.scratch);
  T* x = first_number<T>(offset, t.entries());
  T* grad = x + t.inputs * planes.size;
  list_offsets(t, false, planes, offset);
  clear(x, (t.inputs + p.part_outputs()) * planes.size);
  // strips of seven planes that fit the nearest cache
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

// An item is kConvOutputs outputs. Those that do not see an entry have a partial sum of zero there.
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

void masked_conv2d_pack(const MaskedConv2d& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { pack<decltype(type)>(p, begin, end); });
}

void masked_conv2d(const MaskedConv2d& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { convolve<decltype(type)>(p, begin, end); });
}

void masked_conv2d_weight(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { weight_gradient<decltype(type)>(p, begin, end); });
}

void masked_conv2d_weight_sum(const MaskedConv2dWeight& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { sum_groups<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

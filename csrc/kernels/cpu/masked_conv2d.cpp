// The convolution over the taps that a mask allows. Vectors run over pixels, and registers hold a tile of channels × pixels.
#include "kernels/masked_conv2d.h"

#include "kernels/cpu/masked_planes.h"

namespace dgmfast {
namespace {

// Writes the weights of the output channels [begin, end) in the order in which the kernel reads them.
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

// Computes out[r][i] = bias[r] + Σ_k weight[k][r] x[offset[k] + i] for R channels and V vectors of positions. The last vector
// begins at position `last`. If bias is null, the sum is added to `out`.
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

// Computes the positions [0, count) in tiles of nearly equal size. If `exact`, the last vector ends at the last position, which
// needs at least one whole vector of positions; otherwise it may reach beyond.
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

// Copies the strip of a block's channels to the rows `out`, without the margins. The strip begins at position `first`.
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

// Returns whether it is faster to compute rows in place, with vectors that overlap at their ends, than to compute rows with their
// margins in a strip and to copy the strip. The estimate is in cycles per position and channel, where the strip costs about eight
// multiply-adds more.
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

// Computes the positions [at, at + count) of an item's rows `out`.
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

}  // namespace

namespace cpu::DGMFAST_ISA {

void masked_conv2d_pack(const MaskedConv2d& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { pack<decltype(type)>(p, begin, end); });
}

void masked_conv2d(const MaskedConv2d& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { convolve<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

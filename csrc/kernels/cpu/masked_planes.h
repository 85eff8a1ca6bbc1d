// What the CPU kernels of masked_conv2d share: the list of taps, and padded planes of an image. Everything has internal linkage.
#pragma once

#include "kernels/cpu/row_loops.h"
#include "kernels/cpu/vector.h"
#include "kernels/masked_conv2d.h"

namespace dgmfast {
namespace {

// The number of vectors of positions in a register tile of `rows` channels. The tile has as many sums as leave registers for the
// operands, and at least eight, which hide the latency.
constexpr int tile_vectors(int rows) { return rows == 1 ? 8 : 12 / rows; }

// Calls body(channel, tap) for each entry of the list that MaskedTaps describes, in order.
template <class Body>
DGMFAST_HOST_DEVICE void for_each_entry(const MaskedTaps& t, bool transposed, Body body) {
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

// Writes the offset of each entry in the padded planes.
inline void list_offsets(const MaskedTaps& taps, bool transposed, const PaddedPlanes& planes, int64_t* offset) {
  for_each_entry(taps, transposed,
                 [&](int64_t channel, int64_t tap) { *offset++ = channel * planes.size + planes.offset(taps, transposed, tap); });
}

// The first number in scratch memory, which follows the offsets.
template <class T>
DGMFAST_HOST_DEVICE T* first_number(int64_t* offset, int64_t entries) {
  return reinterpret_cast<T*>(offset + (entries + 7) / 8 * 8);
}

// Channels that are computed together: neighbours of one group, because those see the same entries.
struct Block {
  int64_t first, count;
};

// The block that contains `channel`, in groups of `group` channels of which the first starts at `first`.
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
DGMFAST_HOST_DEVICE void copy(T* to, const T* from, int64_t n) {
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
DGMFAST_HOST_DEVICE void clear(T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = T(0);
}

// Copies the rows [first, first + rows) of an image, and the rows around them that taps reach, to `to`. Rows outside the image
// become zeros. The margins must already be zero.
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

}  // namespace
}  // namespace dgmfast

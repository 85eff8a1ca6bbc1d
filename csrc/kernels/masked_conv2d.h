#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// Which taps of a kernel [O, I, kh, kw] there are: those before the centre in raster order; at the centre those of the groups
// before, and with `self` of the output's own group; of the first `unmasked` inputs all.
struct MaskedTaps {
  int64_t outputs, inputs, rows, columns;  // O, I, kh, kw
  int64_t unmasked, colors;
  bool self;

  DGMFAST_ALWAYS_INLINE int64_t all() const { return rows * columns; }
  DGMFAST_ALWAYS_INLINE int64_t before() const { return all() / 2; }  // their number, and the centre's index
  DGMFAST_ALWAYS_INLINE int64_t masked() const { return inputs - unmasked; }
  DGMFAST_ALWAYS_INLINE int64_t group_in() const { return masked() / colors; }
  DGMFAST_ALWAYS_INLINE int64_t group_out() const { return outputs / colors; }

  // How many of the masked inputs, from the first, an output sees at the centre.
  DGMFAST_ALWAYS_INLINE int64_t seen_at_centre(int64_t output) const { return (output / group_out() + self) * group_in(); }
  DGMFAST_ALWAYS_INLINE bool allowed(int64_t output, int64_t input, int64_t tap) const {
    return input < unmasked || tap < before() || (tap == before() && input - unmasked < seen_at_centre(output));
  }

  // A list of all (tap, input) of which every output sees the first so many: masked inputs before the centre, unmasked inputs
  // everywhere, masked inputs at the centre.
  DGMFAST_ALWAYS_INLINE int64_t entries() const { return masked() * (before() + 1) + unmasked * all(); }
  DGMFAST_ALWAYS_INLINE int64_t entries_of(int64_t output) const {
    return masked() * before() + unmasked * all() + seen_at_centre(output);
  }
  DGMFAST_ALWAYS_INLINE int64_t entry(int64_t input, int64_t tap) const {
    if (input < unmasked) return masked() * before() + input * all() + tap;
    if (tap < before()) return (input - unmasked) * before() + tap;
    return masked() * before() + unmasked * all() + input - unmasked;
  }

  // The same seen from an input, of whose gradient every output is a source: all outputs before the centre; at the centre from
  // the last output on; after it, for unmasked inputs.
  DGMFAST_ALWAYS_INLINE int64_t sources() const { return outputs * (unmasked ? all() : before() + 1); }
  DGMFAST_ALWAYS_INLINE int64_t sources_of(int64_t input) const {
    if (input < unmasked) return outputs * all();
    const int64_t first = (input - unmasked) / group_in() + !self;  // group of outputs that sees it at the centre
    return outputs * before() + (colors - first) * group_out();
  }
};

constexpr int64_t kConvBlock = 4;      // channels that the CPU kernels make at a time
constexpr int64_t kConvEntries = 160;  // entries whose part of x stays in the nearest cache for a chunk of positions
constexpr int64_t kConvOutputs = 16;   // outputs whose partial sums they add up at a time

// Where the CPU kernels keep a band of rows of an image: channels one after the other, each row followed by a margin of zeros,
// which is also the left margin of the next row; rows above and below as far as the taps reach. Positions of a row and its
// margin are computed alike, so that a tap is an offset.
struct PaddedPlanes {
  int64_t above, below, pitch, lead, size;  // size: of a channel

  DGMFAST_ALWAYS_INLINE PaddedPlanes(const MaskedTaps& taps, bool transposed, int64_t rows, int64_t width)
      : above(!transposed || taps.unmasked ? taps.rows / 2 : 0),
        below(transposed || taps.unmasked ? taps.rows / 2 : 0),
        pitch(width + taps.columns / 2),
        lead(above * pitch + (taps.columns / 2 + kAlign - 1) / kAlign * kAlign),
        size((lead + (rows + below) * pitch + taps.columns / 2 + kSlack + kAlign - 1) / kAlign * kAlign) {
    if (size / kAlign % 2 == 0) size += kAlign;  // an odd number of cache lines spreads the channels over all of its sets
  }
  DGMFAST_ALWAYS_INLINE int64_t offset(const MaskedTaps& taps, bool transposed, int64_t tap) const {
    const int64_t forward = (tap / taps.columns - taps.rows / 2) * pitch + tap % taps.columns - taps.columns / 2;
    return transposed ? -forward : forward;
  }

  static constexpr int64_t kAlign = 16;
  static constexpr int64_t kSlack = 16;  // the last vector reaches beyond the last position
};

// Their bytes: offsets of the entries, then numbers on a cache line.
DGMFAST_ALWAYS_INLINE int64_t scratch_bytes_of(DType dtype, int64_t entries, int64_t numbers) {
  return (entries + 7) / 8 * 8 * int64_t(sizeof(int64_t)) + numbers * (dtype == DType::f64 ? 8 : 4);
}

// Sizes and strides are those of [N, C, H, W].
struct MaskedConv2d {
  MaskedTaps taps;
  DType dtype;
  bool transposed;  // the gradient of the input: x is the gradient of the output, out that of the input
  int64_t batch, height, width;
  const void* x;
  int64_t x_stride[4];
  const void* weight;  // [O, I, kh, kw] contiguous
  const void* bias;    // [O] or null
  void* out;
  int64_t out_stride[4];
  // CPU: an item is one of `bands` bands of rows of an image
  int64_t bands;
  int64_t chunk;  // positions for which all channels are made before the next, a multiple of kAlign
  void* packed;   // [sources of the output][its channels]: the weights in the order of use, by masked_conv2d_pack
  void* scratch;  // scratch_bytes(), of the thread

  DGMFAST_ALWAYS_INLINE int64_t band_rows() const { return (height + bands - 1) / bands; }
  DGMFAST_ALWAYS_INLINE int64_t channels() const { return transposed ? taps.outputs : taps.inputs; }
  DGMFAST_ALWAYS_INLINE int64_t out_channels() const { return transposed ? taps.inputs : taps.outputs; }
  DGMFAST_ALWAYS_INLINE int64_t entries() const { return transposed ? taps.sources() : taps.entries(); }
  DGMFAST_ALWAYS_INLINE int64_t entries_of(int64_t out_channel) const {
    return transposed ? taps.sources_of(out_channel) : taps.entries_of(out_channel);
  }
  // A long list is worked through in portions for all channels, which begin where the last one left their sums.
  DGMFAST_ALWAYS_INLINE int64_t portions() const { return (entries() + kConvEntries - 1) / kConvEntries; }
  DGMFAST_ALWAYS_INLINE int64_t strip_rows() const { return portions() > 1 ? out_channels() : kConvBlock; }
  DGMFAST_ALWAYS_INLINE PaddedPlanes planes() const { return {taps, transposed, band_rows(), width}; }
  DGMFAST_ALWAYS_INLINE int64_t scratch_bytes() const {
    return scratch_bytes_of(dtype, entries(), channels() * planes().size + strip_rows() * chunk);
  }
};

// The gradient of the weight: partial sums over groups of images, which masked_conv2d_weight_sum adds up.
struct MaskedConv2dWeight {
  MaskedTaps taps;
  DType dtype;
  int64_t batch, height, width;
  const void* x;  // [N, I, H, W]
  int64_t x_stride[4];
  const void* grad;  // [N, O, H, W]
  int64_t grad_stride[4];
  int64_t group;      // CPU: images, CUDA: pixels, of a partial sum
  int64_t groups;     // how many there are
  int64_t parts;      // CPU: an item is a group with one of so many ranges of outputs
  void* partial;      // [groups, entries + 1, O], the last one for the bias; on CUDA float64 or float32
  void* grad_weight;  // [O, I, kh, kw]
  void* grad_bias;    // [O]
  void* scratch;      // CPU: scratch_bytes(), of the thread

  DGMFAST_ALWAYS_INLINE int64_t part_outputs() const {  // of a part, in blocks
    const int64_t blocks = (taps.outputs + kConvBlock - 1) / kConvBlock;
    return (blocks + parts - 1) / parts * kConvBlock;
  }
  DGMFAST_ALWAYS_INLINE PaddedPlanes planes() const { return {taps, false, height, width}; }
  DGMFAST_ALWAYS_INLINE int64_t scratch_bytes() const {
    return scratch_bytes_of(dtype, taps.entries(), (taps.inputs + part_outputs()) * planes().size);
  }
};

DGMFAST_KERNEL(masked_conv2d_pack, MaskedConv2d)  // CPU only; an item is an output channel
DGMFAST_KERNEL(masked_conv2d, MaskedConv2d)
DGMFAST_KERNEL(masked_conv2d_weight, MaskedConv2dWeight)
DGMFAST_KERNEL(masked_conv2d_weight_sum, MaskedConv2dWeight)  // CPU only; an item is kConvOutputs output channels

}  // namespace dgmfast

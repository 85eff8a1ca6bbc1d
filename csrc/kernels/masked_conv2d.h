#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

// The taps of a kernel [O, I, kh, kw] that the mask allows. All taps before the centre, in raster order, are allowed. At the
// centre, an output sees the inputs of the colour groups before its own and, with `self`, also those of its own group. The first
// `unmasked` inputs are seen at all taps.
struct MaskedTaps {
  int64_t outputs, inputs, rows, columns;  // O, I, kh, kw
  int64_t unmasked, colors;
  bool self;

  DGMFAST_ALWAYS_INLINE int64_t all() const { return rows * columns; }
  DGMFAST_ALWAYS_INLINE int64_t before() const { return all() / 2; }  // taps before the centre, and the centre's index
  DGMFAST_ALWAYS_INLINE int64_t masked() const { return inputs - unmasked; }
  DGMFAST_ALWAYS_INLINE int64_t group_in() const { return masked() / colors; }
  DGMFAST_ALWAYS_INLINE int64_t group_out() const { return outputs / colors; }

  // The number of masked inputs, counted from the first one, that an output sees at the centre.
  DGMFAST_ALWAYS_INLINE int64_t seen_at_centre(int64_t output) const { return (output / group_out() + self) * group_in(); }
  DGMFAST_ALWAYS_INLINE bool allowed(int64_t output, int64_t input, int64_t tap) const {
    return input < unmasked || tap < before() || (tap == before() && input - unmasked < seen_at_centre(output));
  }

  // A list of all (tap, input) pairs, of which each output sees a prefix. Its order is: masked inputs before the centre, unmasked
  // inputs at all taps, masked inputs at the centre. entries() is the length of the list, entries_of() the length of an output's
  // prefix, and entry() the index of a pair.
  DGMFAST_ALWAYS_INLINE int64_t entries() const { return masked() * (before() + 1) + unmasked * all(); }
  DGMFAST_ALWAYS_INLINE int64_t entries_of(int64_t output) const {
    return masked() * before() + unmasked * all() + seen_at_centre(output);
  }
  DGMFAST_ALWAYS_INLINE int64_t entry(int64_t input, int64_t tap) const {
    if (input < unmasked) return masked() * before() + input * all() + tap;
    if (tap < before()) return (input - unmasked) * before() + tap;
    return masked() * before() + unmasked * all() + input - unmasked;
  }

  // The same for an input, whose gradient sums over (tap, output) pairs. The order is: all outputs before the centre, then the
  // centre from the last output to the first, then, for unmasked inputs, all outputs after the centre. Each input sees a prefix.
  DGMFAST_ALWAYS_INLINE int64_t sources() const { return outputs * (unmasked ? all() : before() + 1); }
  DGMFAST_ALWAYS_INLINE int64_t sources_of(int64_t input) const {
    if (input < unmasked) return outputs * all();
    const int64_t first = (input - unmasked) / group_in() + !self;  // first group of outputs that sees this input at the centre
    return outputs * before() + (colors - first) * group_out();
  }
};

constexpr int64_t kConvBlock = 4;      // output channels that the CPU kernels compute together
constexpr int64_t kConvEntries = 160;  // entries of a portion: for a chunk of positions, their part of x stays in the L1 cache
constexpr int64_t kConvOutputs = 16;   // outputs whose partial sums the CPU kernel adds up together

// How the CPU kernels store a band of an image's rows. Channels follow one another. Each row is followed by a margin of zeros,
// which is also the left margin of the next row. Rows above and below are stored as far as the taps reach. The kernels compute
// the positions of a margin like those of a row, so that each tap is a constant offset.
struct PaddedPlanes {
  // Rows above and below; numbers per row; offset of the first pixel; numbers per channel.
  int64_t above, below, pitch, lead, size;

  DGMFAST_ALWAYS_INLINE PaddedPlanes(const MaskedTaps& taps, bool transposed, int64_t rows, int64_t width)
      : above(!transposed || taps.unmasked ? taps.rows / 2 : 0),
        below(transposed || taps.unmasked ? taps.rows / 2 : 0),
        pitch(width + taps.columns / 2),
        lead(above * pitch + (taps.columns / 2 + kAlign - 1) / kAlign * kAlign),
        size((lead + (rows + below) * pitch + taps.columns / 2 + kSlack + kAlign - 1) / kAlign * kAlign) {
    // An odd number of cache lines per channel spreads the channels over all cache sets.
    if (size / kAlign % 2 == 0) size += kAlign;
  }
  // The offset from a position to the one that a tap reads.
  DGMFAST_ALWAYS_INLINE int64_t offset(const MaskedTaps& taps, bool transposed, int64_t tap) const {
    const int64_t forward = (tap / taps.columns - taps.rows / 2) * pitch + tap % taps.columns - taps.columns / 2;
    return transposed ? -forward : forward;
  }

  static constexpr int64_t kAlign = 16;
  static constexpr int64_t kSlack = 16;  // the last vector may reach beyond the last position
};

// The bytes of a thread's scratch memory: the offsets of the entries, then, from a cache line on, `numbers` numbers.
DGMFAST_ALWAYS_INLINE int64_t scratch_bytes_of(DType dtype, int64_t entries, int64_t numbers) {
  return (entries + 7) / 8 * 8 * int64_t(sizeof(int64_t)) + numbers * (dtype == DType::f64 ? 8 : 4);
}

// Sizes and strides are in the order [N, C, H, W].
struct MaskedConv2d {
  MaskedTaps taps;
  DType dtype;
  bool transposed;  // computes the gradient of the input: x is the gradient of the output, out that of the input
  int64_t batch, height, width;
  const void* x;
  int64_t x_stride[4];
  const void* weight;  // [O, I, kh, kw] contiguous
  const void* bias;    // [O] or null
  void* out;
  int64_t out_stride[4];
  // For the CPU only. An item is one of the `bands` bands of rows of one image.
  int64_t bands;
  int64_t chunk;  // positions for which all channels are computed before the next ones; a multiple of kAlign
  void* packed;   // per block of channels [entries][channels]: the weights in the order of use, by masked_conv2d_pack
  void* scratch;  // scratch_bytes() bytes per thread

  DGMFAST_ALWAYS_INLINE int64_t band_rows() const { return (height + bands - 1) / bands; }
  DGMFAST_ALWAYS_INLINE int64_t channels() const { return transposed ? taps.outputs : taps.inputs; }
  DGMFAST_ALWAYS_INLINE int64_t out_channels() const { return transposed ? taps.inputs : taps.outputs; }
  DGMFAST_ALWAYS_INLINE int64_t entries() const { return transposed ? taps.sources() : taps.entries(); }
  DGMFAST_ALWAYS_INLINE int64_t entries_of(int64_t out_channel) const {
    return transposed ? taps.sources_of(out_channel) : taps.entries_of(out_channel);
  }
  // A long list is processed in portions. Each portion is processed for all channels, and continues from the sums that the
  // previous one left.
  DGMFAST_ALWAYS_INLINE int64_t portions() const { return (entries() + kConvEntries - 1) / kConvEntries; }
  DGMFAST_ALWAYS_INLINE int64_t strip_rows() const { return portions() > 1 ? out_channels() : kConvBlock; }
  DGMFAST_ALWAYS_INLINE PaddedPlanes planes() const { return {taps, transposed, band_rows(), width}; }
  DGMFAST_ALWAYS_INLINE int64_t scratch_bytes() const {
    return scratch_bytes_of(dtype, entries(), channels() * planes().size + strip_rows() * chunk);
  }
};

// The gradients of the weight and the bias. The kernel computes partial sums over groups of images (CPU) or pixels (CUDA). On
// CUDA the same launch adds them up; on the CPU masked_conv2d_weight_sum does.
struct MaskedConv2dWeight {
  MaskedTaps taps;
  DType dtype;
  int64_t batch, height, width;
  const void* x;  // [N, I, H, W]
  int64_t x_stride[4];
  const void* grad;  // [N, O, H, W]
  int64_t grad_stride[4];
  int64_t group;      // size of a group, in images (CPU) or pixels (CUDA)
  int64_t groups;     // number of groups
  int64_t parts;      // CPU: the outputs are cut into this many ranges; an item is one group and one range
  void* partial;      // [groups, entries + 1, O]; the last entry is for the bias; on CUDA float64 or float32
  void* grad_weight;  // [O, I, kh, kw]
  void* grad_bias;    // [O]
  void* scratch;      // CPU: scratch_bytes() bytes per thread

  DGMFAST_ALWAYS_INLINE int64_t part_outputs() const {  // outputs of a part, in whole blocks
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

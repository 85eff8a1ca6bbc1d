// Draws images pixel by pixel from a stack of causal convolutions, every activation computed once.
#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

enum class PixelKind : int { bernoulli, categorical, logistic };

constexpr int64_t kPanelBytes = 64;  // weights are packed in panels of this many bytes of outputs: one cache line per input

template <class T>
constexpr int64_t kPanel = kPanelBytes / int64_t(sizeof(T));

// One convolution. What it looks at, in raster order: the rows above with all their columns, then its own row up to the pixel,
// where a group of outputs sees the groups of inputs before it and, unless it is the first layer, its own.
struct PixelLayer {
  int64_t inputs, outputs, groups;
  int64_t kernel_rows, kernel_columns;
  bool own_group;                 // mask B
  bool relu, residual;            // conv(relu(h)); conv(...) + h
  const void* weight = nullptr;   // the groups one after the other, each [panels][depth(group)][kPanel], zero beyond its outputs
  const void* context = nullptr;  // what is added, [outputs] at each pixel
  int64_t context_image = 0, context_pixel = 0;  // the strides of that; 0: a bias
  // in the workspace of an image:
  int64_t ring = 0;   // what the convolution reads, [rows()][columns(width)][inputs]; relu is done, the padding is zero
  int64_t pixel = 0;  // h itself at the pixel, [inputs]

  DGMFAST_ALWAYS_INLINE int64_t rows() const { return kernel_rows / 2 + 1; }
  DGMFAST_ALWAYS_INLINE int64_t columns(int64_t width) const { return width + kernel_columns - 1; }
  DGMFAST_ALWAYS_INLINE int64_t own_row(int64_t group) const {  // inputs of the pixel's own row
    return kernel_columns / 2 * inputs + (group + own_group) * (inputs / groups);
  }
  DGMFAST_ALWAYS_INLINE int64_t depth(int64_t group) const { return kernel_rows / 2 * kernel_columns * inputs + own_row(group); }
  DGMFAST_ALWAYS_INLINE int64_t panels(int64_t panel) const { return (outputs / groups + panel - 1) / panel; }
  DGMFAST_ALWAYS_INLINE int64_t weight_offset(int64_t group, int64_t panel) const {
    const int64_t depths = group * depth(0) + group * (group - 1) / 2 * (inputs / groups);
    return depths * panels(panel) * panel;
  }
};

// Everything is contiguous. The workspaces hold the state between calls: rows [0, first_row) are done.
struct PixelCnnSample {
  int64_t channels, height, width;
  int64_t first_row, last_row;
  DType dtype;
  PixelKind kind;
  int64_t levels;
  double temperature;
  const PixelLayer* layers;
  int64_t depth;           // how many layers
  const double* uniforms;  // [N, C, H, W]
  const void* observed;    // [N, C, H, W], used where `keep` is set
  const bool* keep;        // [N, C, H, W]; null: everything is drawn
  void* image;             // [N, C, H, W]
  void* workspace;         // [N, workspace_stride]
  int64_t workspace_stride;
  int64_t parameters;  // in the workspace: of the pixel's distribution, [channels, parameters of one]
  int64_t products;    // in the workspace: [outputs of a group, rounded up to a panel]
  double* weights;     // [N, levels]: unnormalised probabilities of categorical draws
};

DGMFAST_KERNEL(pixelcnn_sample, PixelCnnSample)

}  // namespace dgmfast

// Draws images pixel by pixel from a stack of causal convolutions. Each activation is computed once.
#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

enum class PixelKind : int { bernoulli, categorical, logistic };

constexpr int64_t kPanelBytes = 64;  // size of a panel of packed weights per input: one cache line

template <class T>
constexpr int64_t kPanel = kPanelBytes / int64_t(sizeof(T));

// One convolution. In raster order, it reads the rows above with all their columns, then its own row up to the pixel. At the
// pixel, a group of outputs sees the groups of inputs before it and, unless this is the first layer, its own group.
struct PixelLayer {
  int64_t inputs, outputs, groups;
  int64_t kernel_rows, kernel_columns;
  bool own_group;                 // true for mask B
  bool relu, residual;            // relu: conv(relu(h)); residual: conv(...) + h
  const void* weight = nullptr;   // one array per group, [panels][depth(group)][kPanel], zero beyond the group's outputs
  const void* context = nullptr;  // added to the outputs: [outputs] at each pixel
  int64_t context_image = 0, context_pixel = 0;  // strides of `context`; 0 if it is a bias
  // Offsets in the workspace of an image:
  int64_t ring = 0;   // what the convolution reads, [rows()][columns(width)][inputs], after relu and padded with zeros
  int64_t pixel = 0;  // h at the pixel, before relu, [inputs]

  DGMFAST_ALWAYS_INLINE int64_t rows() const { return kernel_rows / 2 + 1; }
  DGMFAST_ALWAYS_INLINE int64_t columns(int64_t width) const { return width + kernel_columns - 1; }
  DGMFAST_ALWAYS_INLINE int64_t own_row(int64_t group) const {  // number of inputs in the pixel's own row
    return kernel_columns / 2 * inputs + (group + own_group) * (inputs / groups);
  }
  DGMFAST_ALWAYS_INLINE int64_t depth(int64_t group) const { return kernel_rows / 2 * kernel_columns * inputs + own_row(group); }
  DGMFAST_ALWAYS_INLINE int64_t panels(int64_t panel) const { return (outputs / groups + panel - 1) / panel; }
  DGMFAST_ALWAYS_INLINE int64_t weight_offset(int64_t group, int64_t panel) const {
    const int64_t depths = group * depth(0) + group * (group - 1) / 2 * (inputs / groups);
    return depths * panels(panel) * panel;
  }
};

// All arrays are contiguous. The workspaces hold the state between calls, in which rows [0, first_row) are done.
struct PixelCnnSample {
  int64_t channels, height, width;
  int64_t first_row, last_row;
  DType dtype;
  PixelKind kind;
  int64_t levels;
  double temperature;
  const PixelLayer* layers;
  int64_t depth;           // number of layers
  const double* uniforms;  // [N, C, H, W]
  const void* observed;    // [N, C, H, W], used where `keep` is true
  const bool* keep;        // [N, C, H, W]; null if everything is drawn
  void* image;             // [N, C, H, W]
  void* workspace;         // [N, workspace_stride]
  int64_t workspace_stride;
  int64_t parameters;  // offset in the workspace of the parameters of the pixel's distribution, [channels, parameters of one]
  int64_t products;    // offset in the workspace of the sums, [outputs of a group, rounded up to a panel]
  double* weights;     // [N, levels]: unnormalised probabilities of categorical draws
};

DGMFAST_KERNEL(pixelcnn_sample, PixelCnnSample)

}  // namespace dgmfast

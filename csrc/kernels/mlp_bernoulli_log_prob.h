#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

constexpr int kMaxMlpLayers = 16;
constexpr int64_t kMlpTileBytes = 128;  // the most bytes that one number for every row of a tile takes
constexpr int64_t kMlpSegment = 120;    // outputs whose terms are summed before they are added to the total

struct MlpLayer {
  int64_t inputs, outputs;
  const void* weight;  // [outputs, inputs]
  const void* bias;    // [outputs]
};

// This kernel exists only for the CPU. On CUDA the op is composed of other ops.
struct MlpBernoulliLogProb {
  DType dtype, x_type;    // x_type is the dtype, or u8
  Activation activation;  // of all layers except the last
  int depth;              // number of layers; the last one computes the logits
  MlpLayer layer[kMaxMlpLayers];
  int64_t samples;  // number of rows that share one row of x
  const void* h;    // [rows, layer[0].inputs]
  const void* x;    // [rows / samples, dim()], with row stride x_stride
  int64_t x_stride;
  void* log_prob;  // [rows]
  void* scratch;   // scratch_bytes() bytes per thread

  DGMFAST_ALWAYS_INLINE int64_t dim() const { return layer[depth - 1].outputs; }
  DGMFAST_ALWAYS_INLINE int64_t widest() const {  // the widest input of any layer
    int64_t most = 0;
    for (int i = 0; i < depth; ++i) most = layer[i].inputs > most ? layer[i].inputs : most;
    return most;
  }
  DGMFAST_ALWAYS_INLINE int64_t scratch_bytes() const { return kMlpTileBytes * (2 * widest() + kMlpSegment); }
};

DGMFAST_KERNEL(mlp_bernoulli_log_prob, MlpBernoulliLogProb)

}  // namespace dgmfast

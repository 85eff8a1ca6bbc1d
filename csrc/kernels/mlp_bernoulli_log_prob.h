#pragma once

#include "kernels/kernel.h"
#include "kernels/row_plan.h"

namespace dgmfast {

constexpr int kMaxMlpLayers = 16;
constexpr int64_t kMlpTileBytes = 128;  // the most that one number of every row of a tile takes
constexpr int64_t kMlpSegment = 120;    // outputs that are summed before they join the total

struct MlpLayer {
  int64_t inputs, outputs;
  const void* weight;  // [outputs, inputs]
  const void* bias;    // [outputs]
};

// A kernel of the CPU alone: with CUDA the op is made of others.
struct MlpBernoulliLogProb {
  DType dtype, x_type;    // x_type: the dtype, or u8
  Activation activation;  // of all layers but the last
  int depth;              // layers, the last of which makes the logits
  MlpLayer layer[kMaxMlpLayers];
  int64_t samples;  // rows that share one of x
  const void* h;    // [rows, layer[0].inputs]
  const void* x;    // [rows / samples, dim()], by x_stride
  int64_t x_stride;
  void* log_prob;  // [rows]
  void* scratch;   // scratch_bytes(), of the thread

  DGMFAST_ALWAYS_INLINE int64_t dim() const { return layer[depth - 1].outputs; }
  DGMFAST_ALWAYS_INLINE int64_t widest() const {  // of what goes into the layers
    int64_t most = 0;
    for (int i = 0; i < depth; ++i) most = layer[i].inputs > most ? layer[i].inputs : most;
    return most;
  }
  DGMFAST_ALWAYS_INLINE int64_t scratch_bytes() const { return kMlpTileBytes * (2 * widest() + kMlpSegment); }
};

DGMFAST_KERNEL(mlp_bernoulli_log_prob, MlpBernoulliLogProb)

}  // namespace dgmfast

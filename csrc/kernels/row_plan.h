// The types of numbers, and the geometry that most kernels share: rows of `dim` numbers, whose leading dimensions broadcast
// through strides.
#pragma once

#include <cstdint>

namespace dgmfast {

enum class DType : int { f32, f64, f16, bf16, u8 };
enum class Activation : int { identity, relu, leaky_relu, tanh, softplus, elu };

constexpr int kMaxDims = 8;
constexpr int kMaxInputs = 6;
// A CPU gradient kernel on a RowPlan processes this many columns of a row per item.
constexpr int64_t kColumns = 256;

// The leading dimensions after broadcasting. Neighbouring dimensions are merged where every input allows it. Strides are in
// elements; a stride of 0 means that the input is broadcast.
struct Grid {
  int dims = 0;
  int64_t rows = 1;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxInputs][kMaxDims] = {};
};

// A gradient is summed over the rows that its input was broadcast to. `outer` runs over the input's own rows, and `inner` over
// the rows that share one of them (one row if nothing was broadcast). Forward passes use only `outer`.
struct RowPlan {
  int64_t dim = 0;
  DType dtype = DType::f32;
  Grid outer, inner;
  // CUDA cuts a long inner sum into this many partial sums, [segments, outer.rows, dim]. They are float32 if the stored type has
  // 16 bits.
  int64_t segments = 1;
};

}  // namespace dgmfast

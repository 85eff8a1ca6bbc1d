// What kernels are told of numbers, and the geometry that most of them share: rows of `dim` numbers, whose leading dimensions
// broadcast through strides.
#pragma once

#include <cstdint>

namespace dgmfast {

enum class DType : int { f32, f64, f16, bf16, u8 };
enum class Activation : int { identity, relu, leaky_relu, tanh, softplus, elu };

constexpr int kMaxDims = 8;
constexpr int kMaxInputs = 6;
// An item of a CPU gradient kernel on a RowPlan is this many columns of a row.
constexpr int64_t kColumns = 256;

// Leading dimensions after broadcasting, neighbours merged where every input allows it; strides in elements, 0 = broadcast.
struct Grid {
  int dims = 0;
  int64_t rows = 1;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxInputs][kMaxDims] = {};
};

// A gradient sums over the rows that its input was broadcast to: `outer` runs over the input's own rows, `inner` over the
// rows that share it (one, where nothing was broadcast). Forward passes use `outer` alone.
struct RowPlan {
  int64_t dim = 0;
  DType dtype = DType::f32;
  Grid outer, inner;
  // CUDA cuts a long inner sum in this many partial sums, [segments, outer.rows, dim], in float32 where it stores 16 bits
  int64_t segments = 1;
};

}  // namespace dgmfast

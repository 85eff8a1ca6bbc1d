// Loops over rows and columns that the CPU kernels share. Everything has internal linkage, as in csrc/math.
#pragma once

#include "kernels/row_plan.h"
#include "math/portability.h"

namespace dgmfast {
namespace {

// Walks the rows of a grid in order and keeps every input's offset up to date.
class Cursor {
 public:
  Cursor(const Grid& grid, int inputs, int64_t row) : grid_(grid), inputs_(inputs) {
    for (int i = 0; i < inputs; ++i) offset_[i] = 0;
    for (int d = grid.dims - 1; d >= 0; --d) {
      index_[d] = row % grid.size[d];
      row /= grid.size[d];
      for (int i = 0; i < inputs; ++i) offset_[i] += index_[d] * grid.stride[i][d];
    }
  }

  int64_t offset(int input) const { return offset_[input]; }

  void next() {
    for (int d = grid_.dims - 1; d >= 0; --d) {
      for (int i = 0; i < inputs_; ++i) offset_[i] += grid_.stride[i][d];
      if (++index_[d] < grid_.size[d]) return;
      for (int i = 0; i < inputs_; ++i) offset_[i] -= grid_.size[d] * grid_.stride[i][d];
      index_[d] = 0;
    }
  }

 private:
  const Grid& grid_;
  const int inputs_;
  int64_t index_[kMaxDims];
  int64_t offset_[kMaxInputs];
};

template <class Body>
void with_float_type(DType dtype, Body body) {
  if (dtype == DType::f64) {
    body(double());
  } else {
    body(float());
  }
}

// Long sums are cut into blocks, so that the rounding error grows with the number of blocks and not with the length.
constexpr int64_t kSumBlock = 4096;

template <class T, class BlockSum>
T sum_in_blocks(int64_t dim, BlockSum block_sum) {
  T sum = 0;
  for (int64_t begin = 0; begin < dim; begin += kSumBlock) sum += block_sum(begin, minimum(begin + kSumBlock, dim));
  return sum;
}

constexpr int64_t kPartialRows = 64;  // rows that are summed before they are added to the total, to limit rounding error

inline int64_t column_blocks(int64_t dim) { return (dim + kColumns - 1) / kColumns; }

// Computes gradients that are summed over the inner rows. An item is a block of columns of one outer row. `body(offsets, column,
// count, out)` writes the gradients of one row, where out[i] has room for kColumns numbers. Gradients that are not wanted go to
// scratch memory.
template <class T, int kGradients, class Body>
void gradient_rows(const RowPlan& plan, int inputs, void* const (&grads)[kGradients], int64_t begin, int64_t end, Body body) {
  T scratch[kGradients][kColumns];
  T partial[kGradients][kColumns];
  const int64_t blocks = column_blocks(plan.dim);
  if (begin >= end) return;
  Cursor outer(plan.outer, inputs, begin / blocks);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t column = item % blocks * kColumns, count = minimum(kColumns, plan.dim - column);
    const int64_t target = item / blocks * plan.dim + column;
    T* out[kGradients];
    T* total[kGradients];
    for (int i = 0; i < kGradients; ++i) {
      total[i] = grads[i] ? static_cast<T*>(grads[i]) + target : scratch[i];
      out[i] = plan.inner.rows == 1 ? total[i] : scratch[i];
    }
    Cursor inner(plan.inner, inputs, 0);
    int64_t offset[kMaxInputs];
    for (int64_t row = 0; row < plan.inner.rows; ++row, inner.next()) {
      for (int i = 0; i < inputs; ++i) offset[i] = outer.offset(i) + inner.offset(i);
      body(offset, column, count, out);
      if (plan.inner.rows == 1) break;
      const bool opens = row % kPartialRows == 0, closes = row % kPartialRows == kPartialRows - 1 || row == plan.inner.rows - 1;
      for (int i = 0; i < kGradients; ++i) {
        if (!grads[i]) continue;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) partial[i][c] = opens ? scratch[i][c] : partial[i][c] + scratch[i][c];
        if (!closes) continue;
        const bool first = row < kPartialRows;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) total[i][c] = first ? partial[i][c] : total[i][c] + partial[i][c];
      }
    }
    if ((item + 1) % blocks == 0) outer.next();
  }
}

}  // namespace
}  // namespace dgmfast

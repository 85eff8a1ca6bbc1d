#include "ops/plan.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <bitset>

namespace dgmfast {

Tensor with_unit_stride(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }
OptionalTensor with_unit_stride(const OptionalTensor& t) {
  return pointer(t) ? OptionalTensor(with_unit_stride(*t)) : std::nullopt;
}

namespace {

using DimSet = std::bitset<64>;  // a set of leading dimensions, of which torch has at most 64

// Returns the stride of an input along each leading dimension, which is 0 where it is broadcast.
Shape<int64_t> leading_strides(at::IntArrayRef leading, const PlanInput& input) {
  Shape<int64_t> strides(leading.size(), 0);
  if (input.kind == PlanInput::Kind::linear) {
    int64_t stride = 1;
    for (size_t d = leading.size(); d-- > 0; stride *= leading[d]) strides[d] = stride;
    return strides;
  }
  if (!input.tensor) return strides;
  const size_t rank = input.tensor->dim() - (input.kind == PlanInput::Kind::row);
  for (size_t i = 0; i < rank; ++i) {
    if (input.tensor->size(i) != 1) strides[leading.size() - rank + i] = input.tensor->stride(i);
  }
  return strides;
}

// Returns a grid of those dimensions of `leading` that are in `take`, in order. Neighbouring dimensions are merged where every
// input walks them as one.
Grid make_grid(const char* op, at::IntArrayRef leading, c10::ArrayRef<Shape<int64_t>> strides, DimSet take) {
  Grid grid;
  for (size_t d = 0; d < leading.size(); ++d) {
    if (!take[d]) continue;
    grid.rows *= leading[d];
    if (leading[d] == 1) continue;
    const int last = grid.dims - 1;
    bool merge = grid.dims > 0;
    for (size_t i = 0; i < strides.size() && merge; ++i) merge = grid.stride[i][last] == strides[i][d] * leading[d];
    if (merge) {
      grid.size[last] *= leading[d];
      for (size_t i = 0; i < strides.size(); ++i) grid.stride[i][last] = strides[i][d];
      continue;
    }
    TORCH_CHECK_VALUE(grid.dims < kMaxDims, op, ": expected at most ", kMaxDims,
                      " leading dimensions that broadcast differently; got more in ", text(leading));
    grid.size[grid.dims] = leading[d];
    for (size_t i = 0; i < strides.size(); ++i) grid.stride[i][grid.dims] = strides[i][d];
    ++grid.dims;
  }
  return grid;
}

// Returns a plan whose inner grid has the dimensions in `reduced`, and whose outer grid has the others.
RowPlan make_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs,
                  DimSet reduced) {
  c10::SmallVector<Shape<int64_t>, kMaxInputs> strides;
  for (const PlanInput& input : inputs) strides.push_back(leading_strides(leading, input));
  RowPlan plan;
  plan.dim = dim;
  plan.dtype = dtype;
  plan.outer = make_grid(op, leading, strides, ~reduced);
  plan.inner = make_grid(op, leading, strides, reduced);
  return plan;
}

// Returns the leading dimensions that `t` is broadcast over.
DimSet broadcast_dims(at::IntArrayRef leading, const Tensor& t) {
  const size_t missing = leading.size() - (t.dim() - 1);
  DimSet dims;
  for (size_t d = 0; d < leading.size(); ++d) {
    if (d < missing || (t.size(d - missing) == 1 && leading[d] != 1)) dims.set(d);
  }
  return dims;
}

// Raises if a gradient is wanted for an argument that was left out.
void check_wanted(const char* op, size_t i, bool wanted, const Tensor* input) {
  TORCH_CHECK_VALUE(!wanted || input, op, "_backward: wanted must be false for argument ", i, ", which was left out; got true");
}

}  // namespace

RowPlan forward_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs) {
  return make_plan(op, leading, dim, dtype, inputs, {});
}

namespace detail {

void gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs, c10::ArrayRef<bool> wanted,
               std::span<Tensor> grads, GradientRun run) {
  const Tensor& first = *inputs[0].tensor;
  std::array<DimSet, kMaxInputs> reduced;
  for (size_t i = 0; i < wanted.size(); ++i) {
    check_wanted(op, i, wanted[i], inputs[i].tensor);
    grads[i] = wanted[i] ? at::empty(inputs[i].tensor->sizes(), first.options()) : at::empty({0}, first.options());
    if (wanted[i]) reduced[i] = broadcast_dims(leading, *inputs[i].tensor);
  }
  uint32_t done = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!wanted[i] || (done >> i & 1u)) continue;
    RowPlan plan = make_plan(op, leading, dim, dtype_of(first), inputs, reduced[i]);
    const bool empty = plan.inner.rows == 0;
    const int64_t targets = plan.outer.rows * dim;
    if (runs_cuda(first.device()) && targets > 0 && targets < kCudaThreads) {
      plan.segments = std::min(plan.inner.rows, std::max<int64_t>(1, kCudaThreads / targets));
    }
    c10::SmallVector<void*, kMaxInputs> out(wanted.size(), nullptr);
    c10::SmallVector<Tensor, kMaxInputs> partial(wanted.size());
    for (size_t j = i; j < wanted.size(); ++j) {
      if (!wanted[j] || reduced[j] != reduced[i]) continue;
      done |= 1u << j;
      if (empty) grads[j].zero_();
      const auto options = grads[j].options().dtype(accumulate_type(first));
      partial[j] = plan.segments > 1 ? at::empty({plan.segments, plan.outer.rows * dim}, options) : grads[j];
      out[j] = partial[j].mutable_data_ptr();
    }
    if (empty) continue;
    run(plan, plan.outer.rows * ((dim + kColumns - 1) / kColumns), out);
    if (plan.segments == 1) continue;
    for (size_t j = 0; j < wanted.size(); ++j) {
      if (out[j]) grads[j] = partial[j].sum(0).to(first.scalar_type()).view(grads[j].sizes());
    }
  }
}

}  // namespace detail

template <size_t N>
std::array<Tensor, N> meta_gradients(const char* op, const std::array<const Tensor*, N>& inputs,
                                     const std::array<bool, N>& wanted) {
  std::array<Tensor, N> grads;
  for (size_t i = 0; i < N; ++i) {
    check_wanted(op, i, wanted[i], inputs[i]);
    grads[i] = wanted[i] ? at::empty_symint(inputs[i]->sym_sizes(), inputs[0]->options()) : at::empty({0}, inputs[0]->options());
  }
  return grads;
}

template std::array<Tensor, 2> meta_gradients(const char*, const std::array<const Tensor*, 2>&, const std::array<bool, 2>&);
template std::array<Tensor, 3> meta_gradients(const char*, const std::array<const Tensor*, 3>&, const std::array<bool, 3>&);
template std::array<Tensor, 4> meta_gradients(const char*, const std::array<const Tensor*, 4>&, const std::array<bool, 4>&);

}  // namespace dgmfast

// Plans: how a kernel walks arguments that broadcast, and which gradients are computed in one run.
#pragma once

#include <c10/util/FunctionRef.h>

#include <array>
#include <span>

#include "kernels/row_plan.h"
#include "ops/checks.h"

namespace dgmfast {

// About the number of threads that keep a CUDA card busy. If one thread per column gives fewer, a sum over many rows is cut into
// segments.
constexpr int64_t kCudaThreads = 1 << 17;

// Returns a tensor that the kernels can walk, with unit stride along the last dimension. It is a copy only if `t` has another
// stride there.
Tensor with_unit_stride(const Tensor& t);
OptionalTensor with_unit_stride(const OptionalTensor& t);

// Where a plan takes the strides of one kernel input from.
struct PlanInput {
  enum class Kind { row, scalar, linear };  // [..., D]; [...] with one number per row; the row's own index, without a tensor
  const Tensor* tensor = nullptr;           // null if the input is absent
  Kind kind = Kind::row;
};

RowPlan forward_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs);

namespace detail {
// Plans the gradients of the inputs 0 … wanted.size() − 1 and allocates them. Gradients that are broadcast alike share one run.
using GradientRun = c10::function_ref<void(const RowPlan&, int64_t items, c10::ArrayRef<void*> out)>;
void gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs, c10::ArrayRef<bool> wanted,
               std::span<Tensor> grads, GradientRun run);
}  // namespace detail

// Returns empty gradients of the right shapes, for Meta.
template <size_t N>
std::array<Tensor, N> meta_gradients(const char* op, const std::array<const Tensor*, N>& inputs,
                                     const std::array<bool, N>& wanted);

}  // namespace dgmfast

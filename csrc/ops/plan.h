// Plans: how a kernel walks arguments that broadcast, and which gradients share a run.
#pragma once

#include <c10/util/FunctionRef.h>

#include <array>
#include <span>

#include "kernels/row_plan.h"
#include "ops/checks.h"

namespace dgmfast {

// A CUDA card wants about this many threads before a sum over many rows is left to one thread per column.
constexpr int64_t kCudaThreads = 1 << 17;

// A tensor that the kernels can walk: unit stride along the last dimension. Copies only where that one is strided.
Tensor with_unit_stride(const Tensor& t);
OptionalTensor with_unit_stride(const OptionalTensor& t);

// Where a plan takes the strides of one kernel input from.
struct PlanInput {
  enum class Kind { row, scalar, linear };  // [..., D]; [...] with one number per row; the row's own index, no tensor
  const Tensor* tensor = nullptr;           // null: absent
  Kind kind = Kind::row;
};

RowPlan forward_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs);

namespace detail {
// Plans the gradients of inputs 0 … wanted.size() − 1, one run for all that are broadcast alike, and allocates them.
using GradientRun = c10::function_ref<void(const RowPlan&, int64_t items, c10::ArrayRef<void*> out)>;
void gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs, c10::ArrayRef<bool> wanted,
               std::span<Tensor> grads, GradientRun run);
}  // namespace detail

// Their shapes, under Meta.
template <size_t N>
std::array<Tensor, N> meta_gradients(const char* op, const std::array<const Tensor*, N>& inputs,
                                     const std::array<bool, N>& wanted);

}  // namespace dgmfast

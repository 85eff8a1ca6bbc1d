// What the ops have in common: checks with readable messages, broadcasting plans, allocation and launching.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/FunctionRef.h>
#include <c10/util/SmallVector.h>
#include <c10/util/string_view.h>

#include <array>
#include <optional>
#include <span>

#include "kernels/kernel.h"
#include "kernels/rows.h"

namespace dgmfast {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
template <class Int>
using Shape = c10::SmallVector<Int, 6>;

// A CUDA card wants about this many threads before a sum over many rows is left to one thread per column.
constexpr int64_t kCudaThreads = 1 << 17;

// An item of a CPU gradient kernel on a RowPlan is this many columns of a row (kernels/cpu/rows.h: kColumns).
constexpr int64_t kColumnsPerItem = 256;

// One tensor argument by the name users know; `tensor` is null where an optional argument was left out.
struct Arg {
  const char* name;
  const Tensor* tensor;
};

inline const Tensor* pointer(const OptionalTensor& t) { return t.has_value() && t->defined() ? &*t : nullptr; }
inline const void* data(const Tensor* t) { return t ? t->const_data_ptr() : nullptr; }

template <class Int>
c10::ArrayRef<Int> sizes(const Tensor& t) {
  if constexpr (std::is_same_v<Int, c10::SymInt>) {
    return t.sym_sizes();
  } else {
    return t.sizes();
  }
}

DType dtype_of(const Tensor& t);

// Sums of hundreds of nats are kept out of 16 bits.
inline at::ScalarType sum_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// One device for all, and one floating dtype that the device's kernels take.
void check_floating(const char* op, c10::ArrayRef<Arg> args);
void check_same_device(const char* op, const Arg& expected, const Arg& got);
// On the device of `first`, and of its dtype, or bool or uint8: binary data.
void check_data(const char* op, const Arg& first, const Arg& data);

// The activation of a name; none is the identity.
Activation activation_of(const char* op, const std::optional<c10::string_view>& name);

// Broadcasts the leading dimensions of an argument [..., D] with `shape`, in place. Int is SymInt under Meta.
template <class Int>
void join_leading(const char* op, const Arg& arg, Shape<Int>& shape);

// The broadcast shape of the leading dimensions of arguments [..., D] that share D.
template <class Int>
Shape<Int> leading_shape(const char* op, c10::ArrayRef<Arg> args);

// An incoming gradient must look like the output it belongs to: `shape`, on the device and of the dtype of the op's `first`
// argument.
template <class Int>
void check_gradient(const char* op, const Arg& grad, const Arg& first, c10::ArrayRef<Int> shape);

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

// Whether ops on this device run CUDA kernels: on a card, and in a build with DGMFAST_CUDA_ON_HOST, which is for tests, on the
// CPU.
inline bool runs_cuda(const at::Device& device) {
#ifdef DGMFAST_CUDA_ON_HOST
  return true;
#else
  return device.is_cuda();
#endif
}

// Runs a CPU kernel on chunks of `items`, each of about `cost` numbers, or a CUDA kernel on the current stream.
template <class Params>
void launch(const at::Device& device, const Params& params, int64_t items, int64_t cost, CpuKernel<Params> cpu,
            CudaKernel<Params> cuda);

namespace detail {
void run_on_cpu(int64_t items, int64_t cost, c10::function_ref<void(int64_t, int64_t)> body);
void run_with_scratch(int64_t bytes, int64_t items, int64_t grain, c10::function_ref<void(void*, int64_t, int64_t)> body);
void run_on_cuda(const at::Device& device, c10::function_ref<void(void*)> body);

// Plans the gradients of inputs 0 … wanted.size() − 1, one run for all that are broadcast alike, and allocates them.
using GradientRun = c10::function_ref<void(const RowPlan&, int64_t items, c10::ArrayRef<void*> out)>;
void gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs, c10::ArrayRef<bool> wanted,
               std::span<Tensor> grads, GradientRun run);
}  // namespace detail

template <class Params>
void launch(const at::Device& device, const Params& params, int64_t items, int64_t cost, CpuKernel<Params> cpu,
            CudaKernel<Params> cuda) {
  if (items == 0) return;
  if (runs_cuda(device)) {
    detail::run_on_cuda(device, [&](void* stream) { cuda(params, stream); });
  } else {
    detail::run_on_cpu(items, cost, [&](int64_t begin, int64_t end) { cpu(params, begin, end); });
  }
}

// Runs a CPU kernel on its items, at least `grain` of them a thread, with params.scratch of the thread's own.
template <class Params>
void launch_with_scratch(const Params& params, int64_t items, int64_t grain, CpuKernel<Params> kernel) {
  detail::run_with_scratch(params.scratch_bytes(), items, grain, [&](void* scratch, int64_t begin, int64_t end) {
    Params own = params;
    own.scratch = scratch;
    kernel(own, begin, end);
  });
}

// The gradients of the first N inputs; those not wanted come back with size 0. `fill(plan, out)` makes the kernel's struct.
template <size_t N, class Params, class Fill>
std::array<Tensor, N> launch_gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs,
                                       const std::array<bool, N>& wanted, Fill fill, CpuKernel<Params> cpu,
                                       CudaKernel<Params> cuda) {
  std::array<Tensor, N> grads;
  const at::Device device = inputs[0].tensor->device();
  detail::gradients(op, leading, dim, inputs, wanted, grads, [&](const RowPlan& plan, int64_t items, c10::ArrayRef<void*> out) {
    Params params = fill(plan);
    for (size_t i = 0; i < N; ++i) params.grad_input[i] = out[i];
    launch(device, params, items, plan.dim * plan.inner.rows, cpu, cuda);
  });
  return grads;
}

// The same, under Meta.
template <size_t N>
std::array<Tensor, N> meta_gradients(const char* op, const std::array<const Tensor*, N>& inputs,
                                     const std::array<bool, N>& wanted);

}  // namespace dgmfast

// Launches kernels on CPU threads or on a CUDA stream.
#pragma once

#include <c10/util/FunctionRef.h>

#include "kernels/kernel.h"
#include "ops/plan.h"

namespace dgmfast {

namespace detail {
void run_on_cpu(int64_t items, int64_t cost, c10::function_ref<void(int64_t, int64_t)> body);
void run_with_scratch(int64_t bytes, int64_t items, int64_t grain, c10::function_ref<void(void*, int64_t, int64_t)> body);
void run_on_cuda(const at::Device& device, c10::function_ref<void(void*)> body);
}  // namespace detail

// Runs a CPU kernel on chunks of its `items`, each of which costs about as much as `cost` numbers, or a CUDA kernel on the
// current stream.
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

// Runs a CPU kernel on its items, at least `grain` of them per thread. Each thread has its own params.scratch.
template <class Params>
void launch_with_scratch(const Params& params, int64_t items, int64_t grain, CpuKernel<Params> kernel) {
  detail::run_with_scratch(params.scratch_bytes(), items, grain, [&](void* scratch, int64_t begin, int64_t end) {
    Params own = params;
    own.scratch = scratch;
    kernel(own, begin, end);
  });
}

// Returns the gradients of the first N inputs. Gradients that are not wanted have size 0. `fill(plan)` makes the kernel's struct,
// except for grad_input.
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

}  // namespace dgmfast

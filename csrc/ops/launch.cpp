#include "ops/launch.h"

#include <ATen/Parallel.h>
#include <ATen/core/TensorBase.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace dgmfast {

// With fewer numbers than this, a thread costs more time than it saves.
constexpr int64_t kGrain = 16384;

namespace detail {

void run_on_cpu(int64_t items, int64_t cost, c10::function_ref<void(int64_t, int64_t)> body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost));
  at::parallel_for(0, items, grain, body);
}

void run_with_scratch(int64_t bytes, int64_t items, int64_t grain, c10::function_ref<void(void*, int64_t, int64_t)> body) {
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // threads do not inherit the guard
    const Tensor scratch = at::empty({bytes}, at::TensorOptions(at::kByte));
    body(scratch.mutable_data_ptr(), begin, end);
  });
}

void run_on_cuda(const at::Device& device, c10::function_ref<void(void*)> body) {
  if (!device.is_cuda()) return body(nullptr);  // in a build with DGMFAST_CUDA_ON_HOST
  const c10::DeviceGuard guard(device);
  body(c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle());
}

}  // namespace detail

}  // namespace dgmfast

// How an op meets torch's dispatcher, autograd and autocast.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/rows.h"

// Registers an op's `forward`, `backward`, `forward_meta`, `backward_meta` and `autograd`, found in the enclosing scope,
// with its struct `Op`, for every dispatch key.
#define DGMFAST_REGISTER(op)                                                                               \
  TORCH_LIBRARY_IMPL(dgmfast, CPU, m) {                                                                    \
    m.impl(#op, &forward);                                                                                 \
    m.impl(#op "_backward", &backward);                                                                    \
  }                                                                                                        \
  TORCH_LIBRARY_IMPL(dgmfast, CUDA, m) {                                                                   \
    m.impl(#op, &forward);                                                                                 \
    m.impl(#op "_backward", &backward);                                                                    \
  }                                                                                                        \
  TORCH_LIBRARY_IMPL(dgmfast, Meta, m) {                                                                   \
    m.impl(#op, &forward_meta);                                                                            \
    m.impl(#op "_backward", &backward_meta);                                                               \
  }                                                                                                        \
  TORCH_LIBRARY_IMPL(dgmfast, Autograd, m) {                                                               \
    m.impl(#op, &autograd);                                                                                \
    m.impl(#op "_backward", &BackwardAutograd<Op, Op::Backward>::call);                                    \
  }                                                                                                        \
  TORCH_LIBRARY_IMPL(dgmfast, AutocastCPU, m) { m.impl(#op, &Autocast<Op, at::kCPU, Op::Forward>::call); } \
  TORCH_LIBRARY_IMPL(dgmfast, AutocastCUDA, m) { m.impl(#op, &Autocast<Op, at::kCUDA, Op::Forward>::call); }

namespace dgmfast {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

namespace detail {
inline bool differentiable(const Tensor& t, bool reverse_mode) {
  // a forward-mode tangent also goes through the Function, which raises torch's error: it must not vanish
  return t.defined() && ((reverse_mode && t.requires_grad()) || t._fw_grad(/*level=*/0).defined());
}
inline bool differentiable(const OptionalTensor& t, bool reverse_mode) {
  return t.has_value() && differentiable(*t, reverse_mode);
}
inline bool differentiable(at::TensorList list, bool reverse_mode) {
  return std::any_of(list.begin(), list.end(), [&](const Tensor& t) { return differentiable(t, reverse_mode); });
}
template <class T>
bool differentiable(const T&, bool) {
  return false;
}
}  // namespace detail

// Whether a call must leave a node in the autograd graph.
template <class... Args>
bool needs_graph(const Args&... args) {
  const bool reverse_mode = c10::GradMode::is_enabled();
  return (detail::differentiable(args, reverse_mode) || ...);
}

inline OptionalTensor optional(const Tensor& saved) { return saved.defined() ? OptionalTensor(saved) : std::nullopt; }

// Which of the inputs want a gradient; autograd numbers only those that are present.
template <size_t N>
std::array<bool, N> wanted_gradients(const torch::autograd::AutogradContext* ctx, const std::array<bool, N>& present) {
  std::array<bool, N> wanted{};
  size_t edge = 0;
  for (size_t i = 0; i < N; ++i) {
    if (present[i]) wanted[i] = ctx->needs_input_grad(edge++);
  }
  return wanted;
}

// Drops the size-0 stand-ins and adds undefined gradients for the `others` that have none.
template <class Grads, size_t N>
torch::autograd::variable_list gradient_list(const Grads& grads, const std::array<bool, N>& wanted, size_t others = 0) {
  torch::autograd::variable_list list(N + others);
  size_t i = 0;
  std::apply([&](const auto&... g) { ((wanted[i] ? void(list[i] = g) : void(), ++i), ...); }, grads);
  return list;
}

// The Autograd kernel of a backward op: computes below autograd, and leaves a node whose own backward raises.
// `Op` has `name` and `backward()`, the typed handle.
template <class Op>
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative<Op>> {
  template <class... Args>
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, const Args&... args) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    torch::autograd::variable_list list;
    std::apply([&](auto&&... g) { (list.push_back(std::move(g)), ...); }, Op::backward().call(args...));
    return list;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, const torch::autograd::variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, Op::name, ": the second derivative is not implemented; use dgmfast.reference.", Op::name,
                                " where it is needed");
    return {};
  }
};

template <class Op, class Return, class... Args>
Return backward_without_graph(Args... args) {
  if (!needs_graph(args...)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Op::backward().call(args...);
  }
  const torch::autograd::variable_list list = NoSecondDerivative<Op>::apply(args...);
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return Return(list[I]...);
  }(std::make_index_sequence<std::tuple_size_v<Return>>());
}

// Registers `backward_without_graph` under the op's own signature.
template <class Op, class Signature>
struct BackwardAutograd;
template <class Op, class Return, class... Args>
struct BackwardAutograd<Op, Return(Args...)> {
  static Return call(Args... args) { return backward_without_graph<Op, Return, Args...>(args...); }
};

// Under autocast every floating argument but float64 becomes float32, or the op's `autocast_type(device)`.
inline Tensor cast_floating(at::ScalarType type, const Tensor& t, at::DeviceType device) {
  return t.is_floating_point() ? at::autocast::cached_cast(type, t, device) : t;
}
inline OptionalTensor cast_floating(at::ScalarType type, const OptionalTensor& t, at::DeviceType device) {
  return pointer(t) ? OptionalTensor(cast_floating(type, *t, device)) : std::nullopt;
}
inline std::vector<Tensor> cast_floating(at::ScalarType type, at::TensorList list, at::DeviceType device) {
  std::vector<Tensor> cast;
  for (const Tensor& t : list) cast.push_back(cast_floating(type, t, device));
  return cast;
}
template <class Op>
at::ScalarType autocast_type(at::DeviceType device) {
  if constexpr (requires { Op::autocast_type(device); }) {
    return Op::autocast_type(device);
  } else {
    return at::kFloat;
  }
}
// For ops that are products: as torch's linear; the CPU kernels have no 16 bits.
struct AutocastAsLinear {
  static at::ScalarType autocast_type(at::DeviceType device) {
    return device == at::kCPU ? at::kFloat : at::autocast::get_autocast_dtype(device);
  }
};
inline c10::DispatchKeySet autocast_keys() {
  return c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA});
}

template <class Op, at::DeviceType device, class Signature>
struct Autocast;
template <class Op, at::DeviceType device, class Return, class... Args>
struct Autocast<Op, device, Return(Args...)> {
  template <class T>
  static decltype(auto) cast(const T& value) {
    if constexpr (std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor> || std::is_same_v<T, at::TensorList>) {
      return cast_floating(autocast_type<Op>(device), value, device);
    } else {
      return (value);
    }
  }
  static Return call(Args... args) {
    const c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
    return Op::forward().call(cast(args)...);
  }
};

}  // namespace dgmfast

// How an op is connected to torch's dispatcher, autograd and autocast.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "ops/checks.h"

// Registers the functions of an op, which is described by a struct `Op` (see forward_of), for every dispatch key.
#define DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, autograd)                             \
  TORCH_LIBRARY_IMPL(dgmfast, CPU, m) { register_pair<Op>(m, &forward, &backward); }                               \
  TORCH_LIBRARY_IMPL(dgmfast, CUDA, m) { register_pair<Op>(m, &forward, &backward); }                              \
  TORCH_LIBRARY_IMPL(dgmfast, Meta, m) { register_pair<Op>(m, &forward_meta, &backward_meta); }                    \
  TORCH_LIBRARY_IMPL(dgmfast, Autograd, m) { register_pair<Op>(m, &autograd::call, &BackwardAutograd<Op>::call); } \
  TORCH_LIBRARY_IMPL(dgmfast, AutocastCPU, m) { m.impl(Op::name, &Autocast<Op, at::kCPU>::call); }                 \
  TORCH_LIBRARY_IMPL(dgmfast, AutocastCUDA, m) { m.impl(Op::name, &Autocast<Op, at::kCUDA>::call); }

namespace dgmfast {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("dgmfast::" + name).c_str(), "").typed<Signature>();
}

// The typed handles of an op. A struct `Op` has the op's `name` and the signatures `Forward` and `Backward` of its schemas. If
// the backward op is told which of the first N arguments want a gradient, `Op` also has `Wanted`, which is std::array<bool, N>.
template <class Op>
const c10::TypedOperatorHandle<typename Op::Forward>& forward_of() {
  static const auto op = find_op<typename Op::Forward>(Op::name);
  return op;
}
template <class Op>
std::string backward_name() {
  return std::string(Op::name) + "_backward";
}
template <class Op>
const c10::TypedOperatorHandle<typename Op::Backward>& backward_of() {
  static const auto op = find_op<typename Op::Backward>(backward_name<Op>());
  return op;
}
template <class Op, class Forward, class Backward>
void register_pair(torch::Library& m, Forward forward, Backward backward) {
  m.impl(Op::name, forward);
  m.impl(backward_name<Op>().c_str(), backward);
}

namespace detail {
inline bool differentiable(const Tensor& t, bool reverse_mode) {
  // a forward-mode tangent must not be dropped silently: it also goes through the Function, which raises torch's error
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

// Returns whether a call must record a node in the autograd graph.
template <class... Args>
bool needs_graph(const Args&... args) {
  const bool reverse_mode = c10::GradMode::is_enabled();
  return (detail::differentiable(args, reverse_mode) || ...);
}

inline OptionalTensor optional(const Tensor& saved) { return saved.defined() ? OptionalTensor(saved) : std::nullopt; }

// Returns which of the inputs want a gradient. Autograd numbers only the inputs that are present.
template <size_t N>
std::array<bool, N> wanted_gradients(const torch::autograd::AutogradContext* ctx, const std::array<bool, N>& present) {
  std::array<bool, N> wanted{};
  size_t edge = 0;
  for (size_t i = 0; i < N; ++i) {
    if (present[i]) wanted[i] = ctx->needs_input_grad(edge++);
  }
  return wanted;
}

// Returns the gradients as autograd expects them: undefined where they are not wanted, instead of tensors of size 0, and
// undefined for the `others`, arguments that have no gradient.
template <class Grads, size_t N>
torch::autograd::variable_list gradient_list(const Grads& grads, const std::array<bool, N>& wanted, size_t others = 0) {
  torch::autograd::variable_list list(N + others);
  size_t i = 0;
  std::apply([&](const auto&... g) { ((wanted[i] ? void(list[i] = g) : void(), ++i), ...); }, grads);
  return list;
}

namespace detail {
// Saves the arguments of an op for its backward pass: a tensor as a saved variable, anything else as an IValue.
class Keeper {
 public:
  explicit Keeper(torch::autograd::AutogradContext* ctx) : ctx_(ctx) {}
  void keep(const Tensor& t) { tensors_.push_back(t); }
  void keep(const OptionalTensor& t) { tensors_.push_back(pointer(t) ? *t : Tensor()); }
  template <class T>
  void keep(const T& value) {
    ctx_->saved_data[std::to_string(others_++)] = value;
  }
  void done() { ctx_->save_for_backward(std::move(tensors_)); }

 private:
  torch::autograd::AutogradContext* ctx_;
  torch::autograd::variable_list tensors_;
  size_t others_ = 0;
};

// Returns what a Keeper saved, in the same order.
class Kept {
 public:
  explicit Kept(torch::autograd::AutogradContext* ctx) : ctx_(ctx), tensors_(ctx->get_saved_variables()) {}
  const torch::autograd::variable_list& tensors() const { return tensors_; }
  template <class T>
  T next() {
    if constexpr (std::is_same_v<T, Tensor>) {
      return tensors_[tensor_++];
    } else if constexpr (std::is_same_v<T, OptionalTensor>) {
      return optional(tensors_[tensor_++]);
    } else if constexpr (std::is_same_v<T, c10::SymInt>) {
      return ctx_->saved_data[std::to_string(other_++)].toSymInt();
    } else {
      return ctx_->saved_data[std::to_string(other_++)].template to<T>();
    }
  }

 private:
  torch::autograd::AutogradContext* ctx_;
  torch::autograd::variable_list tensors_;
  size_t tensor_ = 0, other_ = 0;
};
}  // namespace detail

// The autograd Function of an op. The op's backward takes the gradients of the outputs, then all arguments of the forward, then
// `Wanted` if the op has it. The arguments that have gradients are tensors and come first.
template <class Op, class Signature = typename Op::Forward>
struct KeepArguments;
template <class Op, class Return, class... Args>
struct KeepArguments<Op, Return(Args...)> : torch::autograd::Function<KeepArguments<Op, Return(Args...)>> {
  static auto forward(torch::autograd::AutogradContext* ctx, const std::decay_t<Args>&... args) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    detail::Keeper keeper(ctx);
    (keeper.keep(args), ...);
    keeper.done();
    if constexpr (std::is_same_v<Return, Tensor>) {
      return forward_of<Op>().call(args...);
    } else {
      return std::apply([](const auto&... t) { return torch::autograd::variable_list{t...}; }, forward_of<Op>().call(args...));
    }
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    detail::Kept kept(ctx);
    const std::tuple<std::decay_t<Args>...> args{kept.next<std::decay_t<Args>>()...};  // braces evaluate in order
    constexpr size_t outputs = [] {
      if constexpr (std::is_same_v<Return, Tensor>) {
        return size_t(1);
      } else {
        return std::tuple_size_v<Return>;
      }
    }();
    const auto call = [&]<size_t... I>(std::index_sequence<I...>, const auto&... wanted) {
      return std::apply([&](const auto&... a) { return backward_of<Op>().call(grads[I]..., a..., wanted...); }, args);
    };
    const auto of_outputs = std::make_index_sequence<outputs>();
    if constexpr (requires { typename Op::Wanted; }) {
      constexpr size_t n = std::tuple_size_v<typename Op::Wanted>;
      std::array<bool, n> present;
      for (size_t i = 0; i < n; ++i) present[i] = kept.tensors()[i].defined();
      const auto wanted = wanted_gradients<n>(ctx, present);
      return gradient_list(call(of_outputs, wanted), wanted, sizeof...(Args) - n);
    } else {
      return gradient_list(call(of_outputs), std::array<bool, 1>{true}, sizeof...(Args) - 1);
    }
  }
};

// The Autograd kernel of an op. It records a node of `Function` if one is needed, and otherwise calls the op below autograd.
template <class Op, class Function = KeepArguments<Op>, class Signature = typename Op::Forward>
struct ForwardAutograd;
template <class Op, class Function, class Return, class... Args>
struct ForwardAutograd<Op, Function, Return(Args...)> {
  static Return call(Args... args) {
    if (!needs_graph(args...)) {
      const at::AutoDispatchBelowADInplaceOrView guard;
      return forward_of<Op>().call(args...);
    }
    const auto outputs = Function::apply(args...);
    if constexpr (std::is_same_v<Return, Tensor>) {
      return outputs;
    } else {
      return [&]<size_t... I>(std::index_sequence<I...>) {
        return Return(outputs[I]...);
      }(std::make_index_sequence<std::tuple_size_v<Return>>());
    }
  }
};

// The Autograd kernel of a backward op. It computes below autograd, and records a node whose own backward raises.
template <class Op>
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative<Op>> {
  template <class... Args>
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, const Args&... args) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    torch::autograd::variable_list list;
    std::apply([&](auto&&... g) { (list.push_back(std::move(g)), ...); }, backward_of<Op>().call(args...));
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
    return backward_of<Op>().call(args...);
  }
  const torch::autograd::variable_list list = NoSecondDerivative<Op>::apply(args...);
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return Return(list[I]...);
  }(std::make_index_sequence<std::tuple_size_v<Return>>());
}

// Gives `backward_without_graph` the signature of the op's schema.
template <class Op, class Signature = typename Op::Backward>
struct BackwardAutograd;
template <class Op, class Return, class... Args>
struct BackwardAutograd<Op, Return(Args...)> {
  static Return call(Args... args) { return backward_without_graph<Op, Return, Args...>(args...); }
};

// Autocast converts every floating-point argument except float64 to float32, or to the type that the op's `autocast_type(device)`
// returns.
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
// For ops that are matrix products. They are cast as torch's linear is, except that the CPU kernels have no 16-bit types.
struct AutocastAsLinear {
  static at::ScalarType autocast_type(at::DeviceType device) {
    return device == at::kCPU ? at::kFloat : at::autocast::get_autocast_dtype(device);
  }
};
inline c10::DispatchKeySet autocast_keys() {
  return c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA});
}

template <class Op, at::DeviceType device, class Signature = typename Op::Forward>
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
    return forward_of<Op>().call(cast(args)...);
  }
};

}  // namespace dgmfast

#include "kernels/mlp_bernoulli_log_prob.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Name = std::optional<c10::string_view>;

struct Op : AutocastAsLinear {
  static constexpr const char* name = "mlp_bernoulli_log_prob";
  using Forward = Tensor(const Tensor&, at::TensorList, at::TensorList, const Tensor&, Name);
};

// The names of the arguments, for messages: weights[0], biases[0], weights[1], ...
const std::array<std::string, 2 * kMaxMlpLayers>& argument_names() {
  static const auto names = [] {
    std::array<std::string, 2 * kMaxMlpLayers> made;
    for (int i = 0; i < kMaxMlpLayers; ++i)
      made[2 * i] = c10::str("weights[", i, "]"), made[2 * i + 1] = c10::str("biases[", i, "]");
    return made;
  }();
  return names;
}

// Checks the arguments and returns the output's shape, which is h's without the last dimension.
template <class Int>
Shape<Int> check(const Tensor& h, at::TensorList weights, at::TensorList biases, const Tensor& x, const Name& activation) {
  activation_of(Op::name, activation);
  TORCH_CHECK_VALUE(!weights.empty() && weights.size() <= kMaxMlpLayers, Op::name, ": weights must be those of 1 to ",
                    kMaxMlpLayers, " layers; got ", weights.size());
  TORCH_CHECK_VALUE(biases.size() == weights.size(), Op::name, ": biases must be as many as weights, ", weights.size(), "; got ",
                    biases.size());
  const auto& names = argument_names();
  c10::SmallVector<Arg, 2 * kMaxMlpLayers + 1> args{{"h", &h}};
  for (size_t i = 0; i < weights.size(); ++i) {
    args.push_back({names[2 * i].c_str(), &weights[i]});
    args.push_back({names[2 * i + 1].c_str(), &biases[i]});
  }
  check_floating(Op::name, args);
  check_data(Op::name, args[0], {"x", &x});
  TORCH_CHECK_VALUE(h.dim() == 2 || h.dim() == 3, Op::name, ": h must have shape [B, H] or [B, K, H]; got ", h.sym_sizes());
  Int width = sizes<Int>(h).back();
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor &weight = weights[i], &bias = biases[i];
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == width, Op::name, ": ", names[2 * i],
                      " must have shape [H, I] with I of what the layer takes, ", width, "; got ", weight.sym_sizes());
    width = sizes<Int>(weight)[0];
    TORCH_CHECK_VALUE(bias.dim() == 1 && bias.sym_size(0) == width, Op::name, ": ", names[2 * i + 1],
                      " must have shape [H] with H of ", names[2 * i], ", ", width, "; got ", bias.sym_sizes());
  }
  TORCH_CHECK_VALUE(x.dim() == 2 && x.sym_size(0) == h.sym_size(0) && x.sym_size(1) == width, Op::name,
                    ": x must have shape [B, D] with B of h and D of the last layer, [", h.sym_size(0), ", ", width, "]; got ",
                    x.sym_sizes());
  return Shape<Int>(sizes<Int>(h).begin(), sizes<Int>(h).end() - 1);
}

// Computes the op layer by layer with other ops, which have gradients and CUDA kernels.
Tensor by_layers(const Tensor& h, at::TensorList weights, at::TensorList biases, const Tensor& x, Name activation) {
  Tensor value = h;
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    value = label_linear(value, weights[i], biases[i].unsqueeze(1), std::nullopt, activation).squeeze(-2);
  }
  return linear_bernoulli_log_prob(value, weights.back(), biases.back(), x);
}

Tensor forward(const Tensor& h_, at::TensorList weights, at::TensorList biases, const Tensor& x_, Name activation) {
  const auto leading = check<int64_t>(h_, weights, biases, x_, activation);
  if (runs_cuda(h_.device())) return by_layers(h_, weights, biases, x_, activation);
  const Tensor log_prob = at::empty(leading, h_.options());
  if (log_prob.numel() == 0) return log_prob;
  const Tensor h = h_.contiguous(), x = with_unit_stride(x_);
  std::vector<Tensor> packed;  // keeps the contiguous tensors alive while the kernel runs
  const auto contiguous = [&](const Tensor& t) { return packed.emplace_back(t.contiguous()).const_data_ptr(); };
  MlpBernoulliLogProb params{};
  params.dtype = dtype_of(h), params.x_type = dtype_of(x), params.activation = activation_of(Op::name, activation);
  params.depth = int(weights.size());
  for (int i = 0; i < params.depth; ++i) {
    params.layer[i] = {weights[i].size(1), weights[i].size(0), contiguous(weights[i]), contiguous(biases[i])};
  }
  params.samples = h.dim() == 2 ? 1 : h.size(1);
  params.h = data(&h), params.x = data(&x), params.x_stride = x.stride(0);
  params.log_prob = log_prob.mutable_data_ptr();
  constexpr int64_t grain = 32;  // rows; one tile or more
  launch_with_scratch(params, log_prob.numel(), grain, cpu::mlp_bernoulli_log_prob);
  return log_prob;
}

Tensor forward_meta(const Tensor& h, at::TensorList weights, at::TensorList biases, const Tensor& x, Name activation) {
  const auto leading = check<c10::SymInt>(h, weights, biases, x, activation);
  return at::empty_symint(leading, h.options().dtype(accumulate_type(h)));
}

Tensor autograd(const Tensor& h, at::TensorList weights, at::TensorList biases, const Tensor& x, Name activation) {
  if (needs_graph(h, weights, biases, x)) {
    check<c10::SymInt>(h, weights, biases, x, activation);
    return by_layers(h, weights, biases, x, activation);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return forward_of<Op>().call(h, weights, biases, x, activation);
}

}  // namespace

Tensor mlp_bernoulli_log_prob(const Tensor& h, at::TensorList weights, at::TensorList biases, const Tensor& x,
                              std::optional<std::string_view> activation) {
  return forward_of<Op>().call(h, weights, biases, x, activation);
}

TORCH_LIBRARY_IMPL(dgmfast, CPU, m) { m.impl(Op::name, &forward); }
TORCH_LIBRARY_IMPL(dgmfast, CUDA, m) { m.impl(Op::name, &forward); }
TORCH_LIBRARY_IMPL(dgmfast, Meta, m) { m.impl(Op::name, &forward_meta); }
TORCH_LIBRARY_IMPL(dgmfast, Autograd, m) { m.impl(Op::name, &autograd); }
// vmap's fallback does not accept lists of tensors
TORCH_LIBRARY_IMPL(dgmfast, FuncTorchBatched, m) { m.impl(Op::name, &by_layers); }
TORCH_LIBRARY_IMPL(dgmfast, AutocastCPU, m) { m.impl(Op::name, &Autocast<Op, at::kCPU>::call); }
TORCH_LIBRARY_IMPL(dgmfast, AutocastCUDA, m) { m.impl(Op::name, &Autocast<Op, at::kCUDA>::call); }

}  // namespace dgmfast

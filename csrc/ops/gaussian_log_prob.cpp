#include "kernels/gaussian_log_prob.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using Wanted = std::array<bool, 3>;

struct Op {
  static constexpr const char* name = "gaussian_log_prob";
  using Forward = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, Wanted);

  static const c10::TypedOperatorHandle<Forward>& forward() {
    static const auto op = find_op<Forward>("dgmfast::gaussian_log_prob");
    return op;
  }
  static const c10::TypedOperatorHandle<Backward>& backward() {
    static const auto op = find_op<Backward>("dgmfast::gaussian_log_prob_backward");
    return op;
  }
};

template <class Int>
Shape<Int> check(const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var) {
  const std::array<Arg, 3> args{{{"x", &x}, {"mean", pointer(mean)}, {"log_var", pointer(log_var)}}};
  check_floating(Op::name, args);
  return leading_shape<Int>(Op::name, args);
}

Tensor forward(const Tensor& x_, const OptionalTensor& mean_, const OptionalTensor& log_var_) {
  const auto leading = check<int64_t>(x_, mean_, log_var_);
  const Tensor x = with_unit_stride(x_);
  const OptionalTensor mean = with_unit_stride(mean_), log_var = with_unit_stride(log_var_);
  const Tensor log_prob = at::empty(leading, x.options());
  const RowPlan plan = forward_plan(Op::name, leading, x.size(-1), dtype_of(x), {{{&x}, {pointer(mean)}, {pointer(log_var)}}});
  const GaussianLogProb params{plan, data(&x), data(pointer(mean)), data(pointer(log_var)), log_prob.mutable_data_ptr()};
  launch(x.device(), params, log_prob.numel(), plan.dim, cpu::gaussian_log_prob, cuda::gaussian_log_prob);
  return log_prob;
}

Gradients backward(const Tensor& grad, const Tensor& x_, const OptionalTensor& mean_, const OptionalTensor& log_var_,
                   Wanted wanted) {
  const auto leading = check<int64_t>(x_, mean_, log_var_);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"x", &x_}, leading);
  const Tensor x = with_unit_stride(x_);
  const OptionalTensor mean = with_unit_stride(mean_), log_var = with_unit_stride(log_var_);
  const auto fill = [&](const RowPlan& plan) {
    return GaussianLogProbBackward{plan, {data(&x), data(pointer(mean)), data(pointer(log_var))}, data(&grad), {}};
  };
  return std::tuple_cat(launch_gradients<3, GaussianLogProbBackward>(
      Op::name, leading, x.size(-1), {{{&x}, {pointer(mean)}, {pointer(log_var)}, {&grad, PlanInput::Kind::scalar}}}, wanted,
      fill, cpu::gaussian_log_prob_backward, cuda::gaussian_log_prob_backward));
}

Tensor forward_meta(const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var) {
  return at::empty_symint(check<c10::SymInt>(x, mean, log_var), x.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var,
                        Wanted wanted) {
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"x", &x}, check<c10::SymInt>(x, mean, log_var));
  return std::tuple_cat(meta_gradients<3>(Op::name, {&x, pointer(mean), pointer(log_var)}, wanted));
}

struct GaussianLogProbFunction : torch::autograd::Function<GaussianLogProbFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const OptionalTensor& mean,
                        const OptionalTensor& log_var) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, mean.value_or(Tensor()), log_var.value_or(Tensor())});
    return Op::forward().call(x, mean, log_var);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const Wanted wanted = wanted_gradients<3>(ctx, {true, saved[1].defined(), saved[2].defined()});
    return gradient_list(Op::backward().call(grad[0], saved[0], optional(saved[1]), optional(saved[2]), wanted), wanted);
  }
};

Tensor autograd(const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var) {
  if (needs_graph(x, mean, log_var)) return GaussianLogProbFunction::apply(x, mean, log_var);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Op::forward().call(x, mean, log_var);
}

}  // namespace

Tensor gaussian_log_prob(const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var) {
  return Op::forward().call(x, mean, log_var);
}

DGMFAST_REGISTER(gaussian_log_prob)

}  // namespace dgmfast

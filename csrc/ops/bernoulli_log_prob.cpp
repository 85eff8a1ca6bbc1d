#include "kernels/bernoulli_log_prob.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor>;
using Wanted = std::array<bool, 2>;

struct Op {
  static constexpr const char* name = "bernoulli_log_prob";
  using Forward = Tensor(const Tensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, Wanted);

  static const c10::TypedOperatorHandle<Forward>& forward() {
    static const auto op = find_op<Forward>("dgmfast::bernoulli_log_prob");
    return op;
  }
  static const c10::TypedOperatorHandle<Backward>& backward() {
    static const auto op = find_op<Backward>("dgmfast::bernoulli_log_prob_backward");
    return op;
  }
};

template <class Int>
Shape<Int> check(const Tensor& logits, const Tensor& x) {
  const std::array<Arg, 2> args{{{"logits", &logits}, {"x", &x}}};
  check_data(Op::name, args[0], args[1]);
  return leading_shape<Int>(Op::name, args);
}

Tensor forward(const Tensor& logits_, const Tensor& x_) {
  const auto leading = check<int64_t>(logits_, x_);
  const Tensor logits = with_unit_stride(logits_), x = with_unit_stride(x_);
  const Tensor log_prob = at::empty(leading, logits.options());
  const RowPlan plan = forward_plan(Op::name, leading, logits.size(-1), dtype_of(logits), {{{&logits}, {&x}}});
  const BernoulliLogProb params{plan, dtype_of(x), data(&logits), data(&x), log_prob.mutable_data_ptr()};
  launch(logits.device(), params, log_prob.numel(), plan.dim, cpu::bernoulli_log_prob, cuda::bernoulli_log_prob);
  return log_prob;
}

Gradients backward(const Tensor& grad, const Tensor& logits_, const Tensor& x_, Wanted wanted) {
  const auto leading = check<int64_t>(logits_, x_);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"logits", &logits_}, leading);
  const Tensor logits = with_unit_stride(logits_), x = with_unit_stride(x_);
  const auto fill = [&](const RowPlan& plan) {
    return BernoulliLogProbBackward{plan, dtype_of(x), {data(&logits), data(&x)}, data(&grad), {}};
  };
  return std::tuple_cat(launch_gradients<2, BernoulliLogProbBackward>(
      Op::name, leading, logits.size(-1), {{{&logits}, {&x}, {&grad, PlanInput::Kind::scalar}}}, wanted, fill,
      cpu::bernoulli_log_prob_backward, cuda::bernoulli_log_prob_backward));
}

Tensor forward_meta(const Tensor& logits, const Tensor& x) {
  return at::empty_symint(check<c10::SymInt>(logits, x), logits.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& logits, const Tensor& x, Wanted wanted) {
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"logits", &logits}, check<c10::SymInt>(logits, x));
  return std::tuple_cat(meta_gradients<2>(Op::name, {&logits, &x}, wanted));
}

struct BernoulliLogProbFunction : torch::autograd::Function<BernoulliLogProbFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& logits, const Tensor& x) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({logits, x});
    return Op::forward().call(logits, x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const Wanted wanted = wanted_gradients<2>(ctx, {true, true});
    return gradient_list(Op::backward().call(grad[0], saved[0], saved[1], wanted), wanted);
  }
};

Tensor autograd(const Tensor& logits, const Tensor& x) {
  if (needs_graph(logits, x)) return BernoulliLogProbFunction::apply(logits, x);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Op::forward().call(logits, x);
}

}  // namespace

Tensor bernoulli_log_prob(const Tensor& logits, const Tensor& x) { return Op::forward().call(logits, x); }

DGMFAST_REGISTER(bernoulli_log_prob)

}  // namespace dgmfast

#include "kernels/bernoulli_log_prob.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "bernoulli_log_prob";
  using Wanted = std::array<bool, 2>;
  using Forward = Tensor(const Tensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, Wanted);
};
using Wanted = Op::Wanted;

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

}  // namespace

Tensor bernoulli_log_prob(const Tensor& logits, const Tensor& x) { return forward_of<Op>().call(logits, x); }

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

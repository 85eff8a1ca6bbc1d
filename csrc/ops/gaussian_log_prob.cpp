#include "kernels/gaussian_log_prob.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "gaussian_log_prob";
  using Wanted = std::array<bool, 3>;
  using Forward = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, Wanted);
};
using Wanted = Op::Wanted;

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

}  // namespace

Tensor gaussian_log_prob(const Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var) {
  return forward_of<Op>().call(x, mean, log_var);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

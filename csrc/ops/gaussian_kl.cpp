#include "kernels/gaussian_kl.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "gaussian_kl";
  using Wanted = std::array<bool, 4>;
  using Forward = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, Wanted);
};
using Wanted = Op::Wanted;

template <class Int>
Shape<Int> check(const Tensor& mean_q, const Tensor& log_var_q, const OptionalTensor& mean_p, const OptionalTensor& log_var_p) {
  const std::array<Arg, 4> args{
      {{"mean_q", &mean_q}, {"log_var_q", &log_var_q}, {"mean_p", pointer(mean_p)}, {"log_var_p", pointer(log_var_p)}}};
  check_floating(Op::name, args);
  return leading_shape<Int>(Op::name, args);
}

Tensor forward(const Tensor& mean_q_, const Tensor& log_var_q_, const OptionalTensor& mean_p_, const OptionalTensor& log_var_p_) {
  const auto leading = check<int64_t>(mean_q_, log_var_q_, mean_p_, log_var_p_);
  const Tensor mean_q = with_unit_stride(mean_q_), log_var_q = with_unit_stride(log_var_q_);
  const OptionalTensor mean_p = with_unit_stride(mean_p_), log_var_p = with_unit_stride(log_var_p_);
  const Tensor kl = at::empty(leading, mean_q.options());
  const RowPlan plan = forward_plan(Op::name, leading, mean_q.size(-1), dtype_of(mean_q),
                                    {{{&mean_q}, {&log_var_q}, {pointer(mean_p)}, {pointer(log_var_p)}}});
  const GaussianKl params{
      plan, data(&mean_q), data(&log_var_q), data(pointer(mean_p)), data(pointer(log_var_p)), kl.mutable_data_ptr()};
  launch(mean_q.device(), params, kl.numel(), plan.dim, cpu::gaussian_kl, cuda::gaussian_kl);
  return kl;
}

Gradients backward(const Tensor& grad, const Tensor& mean_q_, const Tensor& log_var_q_, const OptionalTensor& mean_p_,
                   const OptionalTensor& log_var_p_, Wanted wanted) {
  const auto leading = check<int64_t>(mean_q_, log_var_q_, mean_p_, log_var_p_);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"mean_q", &mean_q_}, leading);
  const Tensor mean_q = with_unit_stride(mean_q_), log_var_q = with_unit_stride(log_var_q_);
  const OptionalTensor mean_p = with_unit_stride(mean_p_), log_var_p = with_unit_stride(log_var_p_);
  const auto fill = [&](const RowPlan& plan) {
    return GaussianKlBackward{
        plan, {data(&mean_q), data(&log_var_q), data(pointer(mean_p)), data(pointer(log_var_p))}, data(&grad), {}};
  };
  return std::tuple_cat(launch_gradients<4, GaussianKlBackward>(
      Op::name, leading, mean_q.size(-1),
      {{{&mean_q}, {&log_var_q}, {pointer(mean_p)}, {pointer(log_var_p)}, {&grad, PlanInput::Kind::scalar}}}, wanted, fill,
      cpu::gaussian_kl_backward, cuda::gaussian_kl_backward));
}

Tensor forward_meta(const Tensor& mean_q, const Tensor& log_var_q, const OptionalTensor& mean_p,
                    const OptionalTensor& log_var_p) {
  return at::empty_symint(check<c10::SymInt>(mean_q, log_var_q, mean_p, log_var_p), mean_q.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& mean_q, const Tensor& log_var_q, const OptionalTensor& mean_p,
                        const OptionalTensor& log_var_p, Wanted wanted) {
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"mean_q", &mean_q},
                              check<c10::SymInt>(mean_q, log_var_q, mean_p, log_var_p));
  return std::tuple_cat(meta_gradients<4>(Op::name, {&mean_q, &log_var_q, pointer(mean_p), pointer(log_var_p)}, wanted));
}

}  // namespace

Tensor gaussian_kl(const Tensor& mean_q, const Tensor& log_var_q, const OptionalTensor& mean_p, const OptionalTensor& log_var_p) {
  return forward_of<Op>().call(mean_q, log_var_q, mean_p, log_var_p);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

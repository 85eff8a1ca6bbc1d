#include "kernels/gaussian_merge.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Pair = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "gaussian_merge";
  using Wanted = std::array<bool, 4>;
  using Forward = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Wanted);
};
using Wanted = Op::Wanted;

template <class Int>
Shape<Int> check(const Tensor& mean_q, const Tensor& log_var_q, const Tensor& mean_p, const Tensor& log_var_p) {
  const std::array<Arg, 4> args{{{"mean_q", &mean_q}, {"log_var_q", &log_var_q}, {"mean_p", &mean_p}, {"log_var_p", &log_var_p}}};
  check_floating(Op::name, args);
  return leading_shape<Int>(Op::name, args);
}

template <class Int>
void check_gradients(const Tensor& grad_mean, const Tensor& grad_log_var, const Tensor& mean_q, Shape<Int> shape) {
  shape.push_back(sizes<Int>(mean_q).back());
  check_gradient<Int>(Op::name, {"grad_mean", &grad_mean}, {"mean_q", &mean_q}, shape);
  check_gradient<Int>(Op::name, {"grad_log_var", &grad_log_var}, {"mean_q", &mean_q}, shape);
}

Pair forward(const Tensor& mean_q_, const Tensor& log_var_q_, const Tensor& mean_p_, const Tensor& log_var_p_) {
  auto shape = check<int64_t>(mean_q_, log_var_q_, mean_p_, log_var_p_);
  const Tensor mean_q = with_unit_stride(mean_q_), log_var_q = with_unit_stride(log_var_q_);
  const Tensor mean_p = with_unit_stride(mean_p_), log_var_p = with_unit_stride(log_var_p_);
  const RowPlan plan =
      forward_plan(Op::name, shape, mean_q.size(-1), dtype_of(mean_q), {{{&mean_q}, {&log_var_q}, {&mean_p}, {&log_var_p}}});
  shape.push_back(plan.dim);
  const Tensor mean = at::empty(shape, mean_q.options()), log_var = at::empty(shape, mean_q.options());
  const GaussianMerge params{plan,
                             {data(&mean_q), data(&log_var_q), data(&mean_p), data(&log_var_p)},
                             mean.mutable_data_ptr(),
                             log_var.mutable_data_ptr()};
  launch(mean_q.device(), params, plan.outer.rows, plan.dim, cpu::gaussian_merge, cuda::gaussian_merge);
  return {mean, log_var};
}

Gradients backward(const Tensor& grad_mean_, const Tensor& grad_log_var_, const Tensor& mean_q_, const Tensor& log_var_q_,
                   const Tensor& mean_p_, const Tensor& log_var_p_, Wanted wanted) {
  const auto leading = check<int64_t>(mean_q_, log_var_q_, mean_p_, log_var_p_);
  check_gradients(grad_mean_, grad_log_var_, mean_q_, leading);
  const Tensor mean_q = with_unit_stride(mean_q_), log_var_q = with_unit_stride(log_var_q_);
  const Tensor mean_p = with_unit_stride(mean_p_), log_var_p = with_unit_stride(log_var_p_);
  const Tensor grad_mean = with_unit_stride(grad_mean_), grad_log_var = with_unit_stride(grad_log_var_);
  const auto fill = [&](const RowPlan& plan) {
    return GaussianMergeBackward{
        plan, {data(&mean_q), data(&log_var_q), data(&mean_p), data(&log_var_p)}, data(&grad_mean), data(&grad_log_var), {}};
  };
  return std::tuple_cat(launch_gradients<4, GaussianMergeBackward>(
      Op::name, leading, mean_q.size(-1), {{{&mean_q}, {&log_var_q}, {&mean_p}, {&log_var_p}, {&grad_mean}, {&grad_log_var}}},
      wanted, fill, cpu::gaussian_merge_backward, cuda::gaussian_merge_backward));
}

Pair forward_meta(const Tensor& mean_q, const Tensor& log_var_q, const Tensor& mean_p, const Tensor& log_var_p) {
  auto shape = check<c10::SymInt>(mean_q, log_var_q, mean_p, log_var_p);
  shape.push_back(mean_q.sym_size(-1));
  return {at::empty_symint(shape, mean_q.options()), at::empty_symint(shape, mean_q.options())};
}

Gradients backward_meta(const Tensor& grad_mean, const Tensor& grad_log_var, const Tensor& mean_q, const Tensor& log_var_q,
                        const Tensor& mean_p, const Tensor& log_var_p, Wanted wanted) {
  check_gradients(grad_mean, grad_log_var, mean_q, check<c10::SymInt>(mean_q, log_var_q, mean_p, log_var_p));
  return std::tuple_cat(meta_gradients<4>(Op::name, {&mean_q, &log_var_q, &mean_p, &log_var_p}, wanted));
}

}  // namespace

Pair gaussian_merge(const Tensor& mean_q, const Tensor& log_var_q, const Tensor& mean_p, const Tensor& log_var_p) {
  return forward_of<Op>().call(mean_q, log_var_q, mean_p, log_var_p);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

#include "kernels/importance_bound.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor>;

struct Op {
  static constexpr const char* name = "importance_bound";
  using Forward = Tensor(const Tensor&, int64_t);
  using Backward = Gradients(const Tensor&, const Tensor&, int64_t);
};

// Checks the arguments and returns log_w with the reduced dimension last.
Tensor check(const Tensor& log_w, int64_t dim) {
  check_floating(Op::name, {{{"log_w", &log_w}}});
  TORCH_CHECK_VALUE(log_w.dim() > 0, Op::name, ": log_w must have at least one dimension; got a 0-dimensional tensor");
  TORCH_CHECK_INDEX(-log_w.dim() <= dim && dim < log_w.dim(), Op::name, ": dim must be in [", -log_w.dim(), ", ", log_w.dim() - 1,
                    "]; got ", dim);
  TORCH_CHECK_VALUE(log_w.sym_size(dim) > 0, Op::name, ": log_w must have at least one sample along dim ", dim, "; got shape ",
                    log_w.sym_sizes());
  return log_w.movedim(dim, -1);
}

Tensor forward(const Tensor& log_w_, int64_t dim) {
  const Tensor log_w = with_unit_stride(check(log_w_, dim));
  const at::IntArrayRef leading = log_w.sizes().slice(0, log_w.dim() - 1);
  const Tensor bound = at::empty(leading, log_w.options());
  const RowPlan plan = forward_plan(Op::name, leading, log_w.size(-1), dtype_of(log_w), {{{&log_w}}});
  const ImportanceBound params{plan, data(&log_w), bound.mutable_data_ptr()};
  launch(log_w.device(), params, bound.numel(), plan.dim, cpu::importance_bound, cuda::importance_bound);
  return bound;
}

Gradients backward(const Tensor& grad, const Tensor& log_w_, int64_t dim) {
  const Tensor log_w = with_unit_stride(check(log_w_, dim));
  const at::IntArrayRef leading = log_w.sizes().slice(0, log_w.dim() - 1);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"log_w", &log_w}, leading);
  const Tensor grad_log_w = at::empty(log_w.sizes(), log_w.options());
  const RowPlan plan =
      forward_plan(Op::name, leading, log_w.size(-1), dtype_of(log_w), {{{&log_w}, {&grad, PlanInput::Kind::scalar}}});
  const ImportanceBoundBackward params{plan, data(&log_w), data(&grad), grad_log_w.mutable_data_ptr()};
  launch(log_w.device(), params, grad.numel(), plan.dim, cpu::importance_bound_backward, cuda::importance_bound_backward);
  return {grad_log_w.movedim(-1, dim)};
}

Tensor forward_meta(const Tensor& log_w, int64_t dim) {
  const Tensor last = check(log_w, dim);
  return at::empty_symint(last.sym_sizes().slice(0, last.dim() - 1), log_w.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& log_w, int64_t dim) {
  const Tensor last = check(log_w, dim);
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"log_w", &log_w}, last.sym_sizes().slice(0, last.dim() - 1));
  return {at::empty_symint(last.sym_sizes(), log_w.options()).movedim(-1, dim)};
}

}  // namespace

Tensor importance_bound(const Tensor& log_w, int64_t dim) { return forward_of<Op>().call(log_w, dim); }

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

#include "kernels/marginalize_labels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "marginalize_labels";
  using Wanted = std::array<bool, 2>;
  using Forward = Tensor(const Tensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, Wanted);
};
using Wanted = Op::Wanted;

template <class Int>
Shape<Int> check(const Tensor& logits, const Tensor& values) {
  const std::array<Arg, 2> args{{{"logits", &logits}, {"values", &values}}};
  check_floating(Op::name, args);
  return leading_shape<Int>(Op::name, args);
}

// Computes the results of the rows or, if `bound` is null, what their gradients need (kLabelSums numbers each).
void run(at::IntArrayRef leading, const Tensor& logits, const Tensor& values, void* bound, void* sums) {
  const RowPlan plan = forward_plan(Op::name, leading, logits.size(-1), dtype_of(logits), {{{&logits}, {&values}}});
  const MarginalizeLabels params{plan, data(&logits), data(&values), bound, sums};
  launch(logits.device(), params, plan.outer.rows, plan.dim, cpu::marginalize_labels, cuda::marginalize_labels);
}

Tensor forward(const Tensor& logits_, const Tensor& values_) {
  const auto leading = check<int64_t>(logits_, values_);
  if (logits_.size(-1) == 0) return at::zeros(leading, logits_.options());  // the sum over no labels
  const Tensor logits = with_unit_stride(logits_), values = with_unit_stride(values_);
  const Tensor bound = at::empty(leading, logits.options());
  run(leading, logits, values, bound.mutable_data_ptr(), nullptr);
  return bound;
}

Gradients backward(const Tensor& grad, const Tensor& logits_, const Tensor& values_, Wanted wanted) {
  const auto leading = check<int64_t>(logits_, values_);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"logits", &logits_}, leading);
  const Tensor logits = with_unit_stride(logits_), values = with_unit_stride(values_);
  const Tensor sums = at::empty({grad.numel(), kLabelSums}, logits.options().dtype(accumulate_type(logits)));
  run(leading, logits, values, nullptr, sums.mutable_data_ptr());
  const auto fill = [&](const RowPlan& plan) {
    return MarginalizeLabelsBackward{plan, {data(&logits), data(&values)}, data(&grad), data(&sums), {}};
  };
  return std::tuple_cat(launch_gradients<2, MarginalizeLabelsBackward>(
      Op::name, leading, logits.size(-1),
      {{{&logits}, {&values}, {&grad, PlanInput::Kind::scalar}, {nullptr, PlanInput::Kind::linear}}}, wanted, fill,
      cpu::marginalize_labels_backward, cuda::marginalize_labels_backward));
}

Tensor forward_meta(const Tensor& logits, const Tensor& values) {
  return at::empty_symint(check<c10::SymInt>(logits, values), logits.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& logits, const Tensor& values, Wanted wanted) {
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"logits", &logits}, check<c10::SymInt>(logits, values));
  return std::tuple_cat(meta_gradients<2>(Op::name, {&logits, &values}, wanted));
}

}  // namespace

Tensor marginalize_labels(const Tensor& logits, const Tensor& values) { return forward_of<Op>().call(logits, values); }

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

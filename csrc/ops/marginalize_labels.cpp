#include "kernels/marginalize_labels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "ops/autograd.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor>;
using Wanted = std::array<bool, 2>;

struct Op {
  static constexpr const char* name = "marginalize_labels";
  using Forward = Tensor(const Tensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, Wanted);

  static const c10::TypedOperatorHandle<Forward>& forward() {
    static const auto op = find_op<Forward>("dgmfast::marginalize_labels");
    return op;
  }
  static const c10::TypedOperatorHandle<Backward>& backward() {
    static const auto op = find_op<Backward>("dgmfast::marginalize_labels_backward");
    return op;
  }
};

template <class Int>
Shape<Int> check(const Tensor& logits, const Tensor& values) {
  const std::array<Arg, 2> args{{{"logits", &logits}, {"values", &values}}};
  check_floating(Op::name, args);
  return leading_shape<Int>(Op::name, args);
}

// The results of the rows, or what their gradients need (kLabelSums numbers each).
void run(at::IntArrayRef leading, const Tensor& logits, const Tensor& values, void* bound, void* sums) {
  const RowPlan plan = forward_plan(Op::name, leading, logits.size(-1), dtype_of(logits), {{{&logits}, {&values}}});
  const MarginalizeLabels params{plan, data(&logits), data(&values), bound, sums};
  launch(logits.device(), params, plan.outer.rows, plan.dim, cpu::marginalize_labels, cuda::marginalize_labels);
}

Tensor forward(const Tensor& logits_, const Tensor& values_) {
  const auto leading = check<int64_t>(logits_, values_);
  if (logits_.size(-1) == 0) return at::zeros(leading, logits_.options());  // the sum over no label
  const Tensor logits = with_unit_stride(logits_), values = with_unit_stride(values_);
  const Tensor bound = at::empty(leading, logits.options());
  run(leading, logits, values, bound.mutable_data_ptr(), nullptr);
  return bound;
}

Gradients backward(const Tensor& grad, const Tensor& logits_, const Tensor& values_, Wanted wanted) {
  const auto leading = check<int64_t>(logits_, values_);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"logits", &logits_}, leading);
  const Tensor logits = with_unit_stride(logits_), values = with_unit_stride(values_);
  const at::ScalarType real = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor sums = at::empty({grad.numel(), kLabelSums}, logits.options().dtype(real));
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

struct MarginalizeLabelsFunction : torch::autograd::Function<MarginalizeLabelsFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& logits, const Tensor& values) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({logits, values});
    return Op::forward().call(logits, values);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const Wanted wanted = wanted_gradients<2>(ctx, {true, true});
    return gradient_list(Op::backward().call(grad[0], saved[0], saved[1], wanted), wanted);
  }
};

Tensor autograd(const Tensor& logits, const Tensor& values) {
  if (needs_graph(logits, values)) return MarginalizeLabelsFunction::apply(logits, values);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Op::forward().call(logits, values);
}

}  // namespace

Tensor marginalize_labels(const Tensor& logits, const Tensor& values) { return Op::forward().call(logits, values); }

DGMFAST_REGISTER(marginalize_labels)

}  // namespace dgmfast

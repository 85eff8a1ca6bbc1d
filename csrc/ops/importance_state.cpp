#include "kernels/importance_state.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

struct Op {
  static constexpr const char* name = "importance_state";
  using Forward = Tensor(const Tensor&, const OptionalTensor&);
};

constexpr int64_t kStateSize = 5;  // as in math/importance.h

// Checks the arguments and returns the state's shape, [..., 5].
template <class Int>
Shape<Int> check(const Tensor& log_w, const OptionalTensor& state) {
  const std::array<Arg, 2> args{{{"log_w", &log_w}, {"state", pointer(state)}}};
  check_floating(Op::name, c10::ArrayRef<Arg>(args).slice(0, 1));
  Shape<Int> shape = leading_shape<Int>(Op::name, c10::ArrayRef<Arg>(args).slice(0, 1));
  shape.push_back(Int(kStateSize));
  if (const Tensor* before = pointer(state)) {
    check_same_device(Op::name, args[0], args[1]);
    TORCH_CHECK_TYPE(before->scalar_type() == at::kDouble, Op::name, ": state must be float64; got ", before->scalar_type());
    const bool fits =
        before->dim() == int64_t(shape.size()) && before->sym_sizes().equals(c10::SymDimVector(shape.begin(), shape.end()));
    TORCH_CHECK_VALUE(fits, Op::name, ": state must have the leading dimensions of log_w and 5 numbers, ",
                      c10::ArrayRef<Int>(shape), "; got ", before->sym_sizes());
  }
  return shape;
}

Tensor forward(const Tensor& log_w_, const OptionalTensor& state) {
  const auto shape = check<int64_t>(log_w_, state);
  const Tensor log_w = with_unit_stride(log_w_);
  const OptionalTensor before = with_unit_stride(state);
  const Tensor after = at::empty(shape, log_w.options().dtype(at::kDouble));
  const at::IntArrayRef leading = log_w.sizes().slice(0, log_w.dim() - 1);
  const RowPlan plan = forward_plan(Op::name, leading, log_w.size(-1), dtype_of(log_w), {{{&log_w}, {pointer(before)}}});
  const ImportanceState params{plan, data(&log_w), static_cast<const double*>(data(pointer(before))),
                               after.mutable_data_ptr<double>()};
  launch(log_w.device(), params, plan.outer.rows, plan.dim, cpu::importance_state, cuda::importance_state);
  return after;
}

Tensor forward_meta(const Tensor& log_w, const OptionalTensor& state) {
  return at::empty_symint(check<c10::SymInt>(log_w, state), log_w.options().dtype(at::kDouble));
}

}  // namespace

Tensor importance_state(const Tensor& log_w, const OptionalTensor& state) { return forward_of<Op>().call(log_w, state); }

TORCH_LIBRARY_IMPL(dgmfast, CPU, m) { m.impl(Op::name, &forward); }
TORCH_LIBRARY_IMPL(dgmfast, CUDA, m) { m.impl(Op::name, &forward); }
TORCH_LIBRARY_IMPL(dgmfast, Meta, m) { m.impl(Op::name, &forward_meta); }
TORCH_LIBRARY_IMPL(dgmfast, AutocastCPU, m) { m.impl(Op::name, &Autocast<Op, at::kCPU>::call); }
TORCH_LIBRARY_IMPL(dgmfast, AutocastCUDA, m) { m.impl(Op::name, &Autocast<Op, at::kCUDA>::call); }
// The state holds statistics and is no training signal, so asking for its gradient raises.
TORCH_LIBRARY_IMPL(dgmfast, Autograd, m) { m.impl(Op::name, torch::autograd::autogradNotImplementedFallback()); }

}  // namespace dgmfast

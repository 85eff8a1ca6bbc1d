#include "kernels/label_linear.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Name = std::optional<c10::string_view>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Op : AutocastAsLinear {
  static constexpr const char* name = "label_linear";
  using Wanted = std::array<bool, 4>;
  using Forward = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, Name);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                             Name, Wanted);
};
using Wanted = Op::Wanted;

// Checks the arguments and returns the leading dimensions of the output.
template <class Int>
Shape<Int> check(const Tensor& x, const Tensor& weight, const Tensor& label_weight, const OptionalTensor& bias) {
  check_floating(Op::name, {{{"x", &x}, {"weight", &weight}, {"label_weight", &label_weight}, {"bias", pointer(bias)}}});
  TORCH_CHECK_VALUE(x.dim() > 0, Op::name, ": x must have shape [..., I]; got a 0-dimensional tensor");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == x.sym_size(-1), Op::name,
                    ": weight must have shape [H, I] with I of x, ", x.sym_size(-1), "; got ", weight.sym_sizes());
  TORCH_CHECK_VALUE(label_weight.dim() == 2 && label_weight.sym_size(0) == weight.sym_size(0), Op::name,
                    ": label_weight must have shape [H, Y] with H of weight, ", weight.sym_size(0), "; got ",
                    label_weight.sym_sizes());
  Shape<Int> leading;
  join_leading(Op::name, {"x", &x}, leading);
  if (const Tensor* b = pointer(bias)) {
    TORCH_CHECK_VALUE(b->dim() > 0 && b->sym_size(-1) == weight.sym_size(0), Op::name,
                      ": bias must have shape [..., H] with H of weight, ", weight.sym_size(0), "; got ", b->sym_sizes());
    join_leading(Op::name, {"bias", b}, leading);
  }
  return leading;
}

template <class Int>
Shape<Int> with_last(Shape<Int> leading, std::initializer_list<Int> last) {
  leading.append(last.begin(), last.end());
  return leading;
}

template <class Int>
Shape<Int> out_shape(const Shape<Int>& leading, const Tensor& label_weight) {
  const auto size = sizes<Int>(label_weight);
  return with_last<Int>(leading, {size[1], size[0]});
}

// Returns W x + bias, which is computed once for all labels. A bias that differs between rows is added to the product, so that x
// is not repeated for it.
Tensor shared_part(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Tensor* b = pointer(bias);
  if (b && b->dim() > 1) return at::add(at::linear(x, weight), *b).contiguous();
  return at::linear(x, weight, b ? OptionalTensor(*b) : std::nullopt).contiguous();
}

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& label_weight, const OptionalTensor& bias, Name name) {
  const Activation activation = activation_of(Op::name, name);
  const auto leading = check<int64_t>(x, weight, label_weight, bias);
  const Tensor out = at::empty(out_shape<int64_t>(leading, label_weight), x.options());
  if (out.numel() == 0) return out;
  const Tensor shared = shared_part(x, weight, bias), by_label = label_weight.t().contiguous();
  const int64_t labels = by_label.size(0), dim = by_label.size(1);
  const LabelLinear params{labels,     dim,           shared.numel() / dim, dtype_of(x),
                           activation, data(&shared), data(&by_label),      out.mutable_data_ptr()};
  launch(x.device(), params, params.rows * labels, dim, cpu::label_linear, cuda::label_linear);
  return out;
}

// Returns how many rows are summed before they are added to the total. On the CPU this limits rounding error; on CUDA it keeps
// the card busy.
int64_t segment_rows(const Tensor& grad, int64_t rows, int64_t targets) {
  if (!runs_cuda(grad.device())) return 64;
  const int64_t segments = std::max<int64_t>(1, kCudaThreads / targets);
  return std::max<int64_t>(1, (rows + segments - 1) / segments);
}

Gradients backward(const Tensor& grad_, const Tensor& out_, const Tensor& x, const Tensor& weight, const Tensor& label_weight,
                   const OptionalTensor& bias, Name name, Wanted wanted) {
  const Activation activation = activation_of(Op::name, name);
  const auto leading = check<int64_t>(x, weight, label_weight, bias);
  const auto shape = out_shape<int64_t>(leading, label_weight);
  check_gradient<int64_t>(Op::name, {"grad", &grad_}, {"x", &x}, shape);
  check_gradient<int64_t>(Op::name, {"out", &out_}, {"x", &x}, shape);
  wanted[3] = wanted[3] && pointer(bias);
  const Tensor grad = grad_.contiguous(), out = out_.contiguous();
  const int64_t labels = label_weight.size(1), dim = label_weight.size(0), rows = c10::multiply_integers(leading);
  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor grad_x = none(), grad_weight = none(), grad_label_weight = none(), grad_bias = none();

  Tensor shared, partial;  // δ summed over the labels, [..., H], and over the rows of each segment, [segments, Y, H]
  LabelLinearBackward params{labels, dim, rows, 1, dtype_of(x), activation, data(&grad), data(&out), nullptr, nullptr};
  params.segment = segment_rows(grad, rows, std::max<int64_t>(1, labels * dim));
  if (wanted[0] || wanted[1] || wanted[3]) {
    shared = at::empty(with_last<int64_t>(leading, {dim}), x.options());
    params.grad_shared = shared.mutable_data_ptr();
  }
  if (wanted[2]) {
    partial = at::empty({params.segments(), labels, dim}, x.options().dtype(accumulate_type(x)));
    params.grad_label_weight = partial.mutable_data_ptr();
  }
  const int64_t items = params.segments() * ((dim + kLabelColumns - 1) / kLabelColumns);
  launch(x.device(), params, items, std::min(params.segment, rows) * labels * std::min(dim, kLabelColumns),
         cpu::label_linear_backward, cuda::label_linear_backward);

  if (wanted[0] || wanted[1]) {
    const Shape<int64_t> own(x.sizes().begin(), x.sizes().end() - 1);
    const int64_t own_rows = c10::multiply_integers(own);
    const Tensor of_x = at::sum_to(shared, at::IntArrayRef(with_last<int64_t>(own, {dim}))).reshape({own_rows, dim});
    if (wanted[0]) grad_x = at::mm(of_x, weight).view(x.sizes());
    if (wanted[1]) grad_weight = at::mm(of_x.t(), x.reshape({own_rows, x.size(-1)}));
  }
  if (wanted[2]) {
    const Tensor sum = params.segments() == 1 ? partial[0] : partial.sum(0);
    grad_label_weight = sum.to(x.scalar_type()).t().contiguous();
  }
  if (wanted[3]) grad_bias = at::sum_to(shared, bias->sizes());
  return {grad_x, grad_weight, grad_label_weight, grad_bias};
}

Tensor forward_meta(const Tensor& x, const Tensor& weight, const Tensor& label_weight, const OptionalTensor& bias, Name name) {
  activation_of(Op::name, name);
  const auto leading = check<c10::SymInt>(x, weight, label_weight, bias);
  return at::empty_symint(out_shape<c10::SymInt>(leading, label_weight), x.options());
}

Gradients backward_meta(const Tensor& grad, const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& label_weight,
                        const OptionalTensor& bias, Name name, Wanted wanted) {
  activation_of(Op::name, name);
  const auto shape = out_shape<c10::SymInt>(check<c10::SymInt>(x, weight, label_weight, bias), label_weight);
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"x", &x}, shape);
  check_gradient<c10::SymInt>(Op::name, {"out", &out}, {"x", &x}, shape);
  const Tensor* given = pointer(bias);
  wanted[3] = wanted[3] && given;
  return std::tuple_cat(meta_gradients<4>(Op::name, {&x, &weight, &label_weight, given}, wanted));
}

struct LabelLinearFunction : torch::autograd::Function<LabelLinearFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& label_weight,
                        const OptionalTensor& bias, Name activation) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor out = forward_of<Op>().call(x, weight, label_weight, bias, activation);
    const Tensor* given = pointer(bias);
    ctx->save_for_backward({out, x, weight, label_weight, given ? *given : Tensor()});
    ctx->saved_data["activation"] = activation ? c10::IValue(std::string(*activation)) : c10::IValue();
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const c10::IValue& activation = ctx->saved_data["activation"];
    const Name name = activation.isNone() ? std::nullopt : Name(activation.toStringRef());
    const Wanted wanted = wanted_gradients<4>(ctx, {true, true, true, saved[4].defined()});
    const auto grads = backward_of<Op>().call(grad[0], saved[0], saved[1], saved[2], saved[3], optional(saved[4]), name, wanted);
    return gradient_list(grads, wanted, 1);
  }
};

using AutogradKernel = ForwardAutograd<Op, LabelLinearFunction>;

}  // namespace

Tensor label_linear(const Tensor& x, const Tensor& weight, const Tensor& label_weight, const OptionalTensor& bias,
                    std::optional<std::string_view> activation) {
  return forward_of<Op>().call(x, weight, label_weight, bias, activation);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, AutogradKernel)

}  // namespace dgmfast

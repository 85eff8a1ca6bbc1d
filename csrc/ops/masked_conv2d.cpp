#include "kernels/masked_conv2d.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Name = c10::string_view;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

struct Op : AutocastAsLinear {
  static constexpr const char* name = "masked_conv2d";
  using Wanted = std::array<bool, 3>;
  using Forward = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, Name, int64_t, int64_t);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, Name, int64_t, int64_t, Wanted);
};
using Wanted = Op::Wanted;

void check(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Name mask, int64_t colors, int64_t unmasked) {
  check_floating(Op::name, {{{"x", &x}, {"weight", &weight}, {"bias", pointer(bias)}}});
  TORCH_CHECK_VALUE(x.dim() == 4, Op::name, ": x must have shape [N, I, H, W]; got ", x.sym_sizes());
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.sym_size(1) == x.sym_size(1), Op::name,
                    ": weight must have shape [O, I, kh, kw] with I of x, ", x.sym_size(1), "; got ", weight.sym_sizes());
  TORCH_CHECK_VALUE(weight.sym_size(2) % 2 == 1 && weight.sym_size(3) % 2 == 1, Op::name,
                    ": weight must have odd kh and kw in its shape [O, I, kh, kw]; got ", weight.sym_sizes());
  if (const Tensor* b = pointer(bias)) {
    TORCH_CHECK_VALUE(b->dim() == 1 && b->sym_size(0) == weight.sym_size(0), Op::name,
                      ": bias must have shape [O] with O of weight, ", weight.sym_size(0), "; got ", b->sym_sizes());
  }
  TORCH_CHECK_VALUE(mask == "A" || mask == "B", Op::name, ": mask must be A or B; got '", mask, "'");
  TORCH_CHECK_VALUE(unmasked >= 0 && weight.sym_size(1) >= unmasked, Op::name, ": unmasked_inputs must lie in 0..",
                    weight.sym_size(1), ", the inputs of weight; got ", unmasked);
  TORCH_CHECK_VALUE(colors >= 1 && (weight.sym_size(1) - unmasked) % colors == 0 && weight.sym_size(0) % colors == 0, Op::name,
                    ": colors must divide the masked inputs of weight, ", weight.sym_size(1) - unmasked, ", and its outputs, ",
                    weight.sym_size(0), "; got ", colors);
}

template <class Int>
Shape<Int> out_shape(const Tensor& x, const Tensor& weight) {
  const auto size = sizes<Int>(x);
  return {size[0], sizes<Int>(weight)[0], size[2], size[3]};
}

MaskedTaps taps_of(const Tensor& weight, Name mask, int64_t colors, int64_t unmasked) {
  return {weight.size(0), weight.size(1), weight.size(2), weight.size(3), unmasked, colors, mask == "B"};
}

void copy_strides(const Tensor& t, int64_t (&stride)[4]) { std::copy_n(t.strides().begin(), 4, stride); }

// Returns the number of positions for which the part of x that a portion of the entries reads fits in 16 KB.
int64_t chunk_of(const MaskedConv2d& p) {
  constexpr int64_t most = 960, step = 48;  // whole register tiles in every kernel
  if (p.out_channels() <= kConvBlock) return most;
  const int64_t rows = p.planes().above + p.planes().below + 1;
  const int64_t lines = std::min(p.channels() * rows, kConvEntries * rows / std::max<int64_t>(1, p.taps.before()));
  const int64_t fits = 16384 / (p.dtype == DType::f64 ? 8 : 4) / std::max<int64_t>(1, lines);
  return std::clamp(fits / step * step, step, most);
}

// Computes the output or, with `transposed`, the gradient of the input, where x is the gradient of the output.
void convolve(const MaskedTaps& taps, bool transposed, const Tensor& x, const Tensor& weight_, const OptionalTensor& bias_,
              const Tensor& out) {
  const Tensor weight = weight_.contiguous(), bias = pointer(bias_) ? bias_->contiguous() : Tensor();
  MaskedConv2d params{};
  params.taps = taps, params.dtype = dtype_of(x), params.transposed = transposed;
  params.batch = x.size(0), params.height = x.size(2), params.width = x.size(3);
  params.x = data(&x), params.weight = data(&weight), params.bias = bias.defined() ? data(&bias) : nullptr;
  params.out = out.mutable_data_ptr();
  copy_strides(x, params.x_stride), copy_strides(out, params.out_stride);
  params.bands = 1;
  if (runs_cuda(x.device())) return launch(x.device(), params, 1, 1, cpu::masked_conv2d, cuda::masked_conv2d);
  const int64_t items = 4 * at::get_num_threads();  // enough to leave no thread without work
  params.bands = std::clamp<int64_t>((items + params.batch - 1) / params.batch, 1, std::max<int64_t>(1, params.height / 4));
  params.chunk = chunk_of(params);
  const Tensor packed = at::empty({params.out_channels(), params.entries()}, x.options());
  params.packed = packed.mutable_data_ptr();
  launch(x.device(), params, params.out_channels(), params.entries(), cpu::masked_conv2d_pack, cuda::masked_conv2d);
  launch_with_scratch(params, params.batch * params.bands, 1, cpu::masked_conv2d);
}

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Name mask, int64_t colors, int64_t unmasked) {
  check(x, weight, bias, mask, colors, unmasked);
  const Tensor out = at::empty(out_shape<int64_t>(x, weight), x.options().memory_format(x.suggest_memory_format()));
  if (out.numel() > 0) convolve(taps_of(weight, mask, colors, unmasked), false, x, weight, bias, out);
  return out;
}

// Cuts the gradient of the weight into partial sums, which are the same for any number of threads. On the CPU they are sums over
// groups of images. The groups are so many that all threads have work, and so few that the partial sums take at most this many
// bytes.
constexpr int64_t kPartialBytes = 1 << 24;
void split(MaskedConv2dWeight& p, const Tensor& x) {
  const int64_t row = p.taps.entries() + 1;
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  if (runs_cuda(x.device())) {
    const int64_t pixels = p.batch * p.height * p.width, tiles = ceil(row, 64) * ceil(p.taps.outputs, 64);
    p.group = std::max<int64_t>(256, ceil(pixels, std::max<int64_t>(1, 512 / tiles)));
    p.groups = ceil(pixels, p.group), p.parts = 1;
    return;
  }
  const int64_t most = std::clamp<int64_t>(kPartialBytes / (8 * p.taps.outputs * row), 1, 32);
  p.group = ceil(p.batch, most), p.groups = ceil(p.batch, p.group);
  p.parts = std::clamp<int64_t>(16 / p.groups, 1, ceil(p.taps.outputs, kConvBlock));
}

void weight_gradient(const MaskedTaps& taps, const Tensor& grad, const Tensor& x, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  MaskedConv2dWeight params{};
  params.taps = taps, params.dtype = dtype_of(x);
  params.batch = x.size(0), params.height = x.size(2), params.width = x.size(3);
  params.x = data(&x), params.grad = data(&grad);
  copy_strides(x, params.x_stride), copy_strides(grad, params.grad_stride);
  split(params, x);
  const Tensor partial = at::empty({params.groups, taps.entries() + 1, taps.outputs}, x.options().dtype(accumulate_type(x)));
  params.partial = partial.mutable_data_ptr(), params.grad_weight = grad_weight.mutable_data_ptr();
  params.grad_bias = grad_bias.numel() ? grad_bias.mutable_data_ptr() : nullptr;
  const bool on_cpu = !runs_cuda(x.device());
  if (on_cpu) launch_with_scratch(params, params.groups * params.parts, 1, cpu::masked_conv2d_weight);
  const int64_t items = on_cpu ? (taps.outputs + kConvOutputs - 1) / kConvOutputs : 1;
  launch(x.device(), params, items, params.groups * taps.entries() * kConvOutputs, cpu::masked_conv2d_weight_sum,
         cuda::masked_conv2d_weight);
}

// Allocates the gradients that are wanted.
Gradients empty_gradients(const Tensor& x, const Tensor& weight, Wanted wanted) {
  const auto make = [&](bool is_wanted, c10::SymIntArrayRef shape, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
    return is_wanted ? at::empty_symint(shape, x.options().memory_format(format)) : at::empty({0}, x.options());
  };
  return {make(wanted[0], x.sym_sizes(), x.suggest_memory_format()), make(wanted[1], weight.sym_sizes()),
          make(wanted[2], weight.sym_size(0))};
}

Gradients backward(const Tensor& grad, const Tensor& x, const Tensor& weight, Name mask, int64_t colors, int64_t unmasked,
                   Wanted wanted) {
  check(x, weight, {}, mask, colors, unmasked);
  check_gradient<int64_t>(Op::name, {"grad", &grad}, {"x", &x}, out_shape<int64_t>(x, weight));
  auto [grad_x, grad_weight, grad_bias] = empty_gradients(x, weight, wanted);
  const MaskedTaps taps = taps_of(weight, mask, colors, unmasked);
  if (grad.numel() == 0 || x.numel() == 0) {
    for (const Tensor& t : {grad_x, grad_weight}) t.zero_();
    if (wanted[2]) grad_bias = at::sum(grad, {0, 2, 3});
    return {grad_x, grad_weight, grad_bias};
  }
  if (wanted[0]) convolve(taps, true, grad, weight, {}, grad_x);
  if (wanted[1]) {
    weight_gradient(taps, grad, x, grad_weight, grad_bias);
  } else if (wanted[2]) {
    grad_bias = at::sum(grad, {0, 2, 3});
  }
  return {grad_x, grad_weight, grad_bias};
}

Tensor forward_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Name mask, int64_t colors,
                    int64_t unmasked) {
  check(x, weight, bias, mask, colors, unmasked);
  return at::empty_symint(out_shape<c10::SymInt>(x, weight), x.options().memory_format(x.suggest_memory_format()));
}

Gradients backward_meta(const Tensor& grad, const Tensor& x, const Tensor& weight, Name mask, int64_t colors, int64_t unmasked,
                        Wanted wanted) {
  check(x, weight, {}, mask, colors, unmasked);
  check_gradient<c10::SymInt>(Op::name, {"grad", &grad}, {"x", &x}, out_shape<c10::SymInt>(x, weight));
  return empty_gradients(x, weight, wanted);
}

struct MaskedConv2dFunction : torch::autograd::Function<MaskedConv2dFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        Name mask, int64_t colors, int64_t unmasked) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = pointer(bias) != nullptr;
    ctx->saved_data["mask"] = std::string(mask);
    ctx->saved_data["colors"] = colors;
    ctx->saved_data["unmasked"] = unmasked;
    return forward_of<Op>().call(x, weight, bias, mask, colors, unmasked);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const Wanted wanted = wanted_gradients<3>(ctx, {true, true, data["bias"].toBool()});
    const auto grads = backward_of<Op>().call(grad[0], saved[0], saved[1], data["mask"].toStringRef(), data["colors"].toInt(),
                                              data["unmasked"].toInt(), wanted);
    return gradient_list(grads, wanted, 3);
  }
};

using AutogradKernel = ForwardAutograd<Op, MaskedConv2dFunction>;

}  // namespace

Tensor masked_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, std::string_view mask, int64_t colors,
                     int64_t unmasked_inputs) {
  return forward_of<Op>().call(x, weight, bias, mask, colors, unmasked_inputs);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, AutogradKernel)

}  // namespace dgmfast

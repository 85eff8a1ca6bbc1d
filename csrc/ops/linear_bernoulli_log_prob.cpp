#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/addr.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "kernels/bernoulli_log_prob.h"
#include "ops/autograd.h"
#include "ops/blocks.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using LogProbAndLogits = std::tuple<Tensor, Tensor>;

struct Op : AutocastAsLinear {
  static constexpr const char* name = "linear_bernoulli_log_prob";
  using Wanted = std::array<bool, 4>;
  using Forward = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&);
  using WithLogits = LogProbAndLogits(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&);
  using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                             const OptionalTensor&, Wanted);
};
using Wanted = Op::Wanted;

const c10::TypedOperatorHandle<Op::WithLogits>& with_logits() {
  static const auto op = find_op<Op::WithLogits>("linear_bernoulli_log_prob_with_logits");
  return op;
}

// Returns the shape of the output, which is h's without the last dimension.
template <class Int>
Shape<Int> leading_of(const Tensor& h) {
  const auto size = sizes<Int>(h);
  return Shape<Int>(size.begin(), size.end() - 1);
}

template <class Int>
Shape<Int> check(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  const Arg first{"h", &h}, last{"x", &x};
  check_floating(Op::name, {{first, {"weight", &weight}, {"bias", pointer(bias)}}});
  check_data(Op::name, first, last);
  TORCH_CHECK_VALUE(h.dim() == 2 || h.dim() == 3, Op::name, ": h must have shape [B, H] or [B, K, H]; got ", h.sym_sizes());
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == h.sym_size(-1), Op::name,
                    ": weight must have shape [D, H] with H of h, ", h.sym_size(-1), "; got ", weight.sym_sizes());
  if (const Tensor* b = pointer(bias)) {
    TORCH_CHECK_VALUE(b->dim() == 1 && b->sym_size(0) == weight.sym_size(0), Op::name,
                      ": bias must have shape [D] with D of weight, ", weight.sym_size(0), "; got ", b->sym_sizes());
  }
  TORCH_CHECK_VALUE(x.dim() == 2 && x.sym_size(0) == h.sym_size(0) && x.sym_size(1) == weight.sym_size(0), Op::name,
                    ": x must have shape [B, D] with B of h and D of weight, [", h.sym_size(0), ", ", weight.sym_size(0),
                    "]; got ", x.sym_sizes());
  return leading_of<Int>(h);
}

template <class Int>
Shape<Int> logits_shape(const Tensor& h, const Tensor& weight) {
  Shape<Int> shape = leading_of<Int>(h);
  shape.push_back(sizes<Int>(weight)[0]);
  return shape;
}

// Checks what the backward pass gets in addition: grad must be in the dtype of the sums, and logits in that of h.
template <class Int>
void check_sums(const Tensor& grad, const Tensor& h, const Tensor& weight, const OptionalTensor& logits,
                const Shape<Int>& leading) {
  const Tensor like = at::empty_symint({0}, h.options().dtype(accumulate_type(h)));
  check_gradient<Int>(Op::name, {"grad", &grad}, {"h", &like}, leading);
  if (pointer(logits)) check_gradient<Int>(Op::name, {"logits", &*logits}, {"h", &h}, logits_shape<Int>(h, weight));
}

// The number of logits that are in memory at a time. They stay in the cache of a core, or in that of a CUDA card.
constexpr int64_t kCpuNumbers = 1 << 18, kCudaNumbers = 1 << 22;

// The arguments in the form that the blocks need. No dimension is empty, except perhaps H.
struct Problem {
  Tensor h, weight;     // [B, K, H], [D, H]
  OptionalTensor bias;  // [D]
  Tensor x;             // [B, 1, D]
  int64_t dim;
  Blocks blocks;

  Problem(const Tensor& h_, const Tensor& weight_, const OptionalTensor& bias_, const Tensor& x_)
      : h(with_samples(h_, h_).contiguous()),
        weight(weight_.contiguous()),
        bias(pointer(bias_) ? OptionalTensor(bias_->contiguous()) : std::nullopt),
        x(with_unit_stride(x_.is_floating_point() ? x_.to(accumulate_type(h_)) : x_).unsqueeze(1)),
        dim(weight.size(0)),
        blocks(h.size(0), h.size(1), std::max<int64_t>(1, (runs_cuda(h.device()) ? kCudaNumbers : kCpuNumbers) / dim)) {}

  bool is_half() const { return h.scalar_type() != accumulate_type(h); }
  Tensor buffer(at::ScalarType type) const { return at::empty({blocks.largest(), dim}, h.options().dtype(type)); }

  // Writes the logits [size, D] of a block to `out`, in h's dtype.
  void product(const Block& b, Tensor out) const {
    const Tensor rows = rows_of(h, b), transposed = weight.t();
    bias ? at::addmm_out(out, *bias, rows, transposed) : at::mm_out(out, rows, transposed);
  }

  RowPlan plan(const Block& b, const Tensor& logits, const Tensor& x_rows, const Tensor* grad) const {
    const Tensor by_sample = logits.view({b.rows, b.samples, dim});
    const std::array<PlanInput, 3> inputs{{{&by_sample}, {&x_rows}, {grad, PlanInput::Kind::scalar}}};
    return forward_plan(Op::name, {b.rows, b.samples}, dim, dtype_of(logits), inputs);
  }
};

// One thread's buffers for the logits of a block, in h's dtype and in the dtype of the sums.
struct Buffers {
  Tensor product, sums;

  Buffers(const Problem& p, bool products)
      : product(products ? p.buffer(p.h.scalar_type()) : Tensor()),
        sums(p.is_half() ? p.buffer(accumulate_type(p.h)) : product) {}

  Tensor widened(const Tensor& logits) const {
    return sums.is_same(product) ? logits : sums.narrow(0, 0, logits.size(0)).copy_(logits);
  }
  Tensor narrowed(const Tensor& delta) const {
    return sums.is_same(product) ? delta : product.narrow(0, 0, delta.size(0)).copy_(delta);
  }
};

// Calls body(first, last) on ranges of n items, on several threads at once. A single item runs in the calling thread, so that the
// matrix library can use its own threads.
template <class Body>
void in_parallel(const at::Device& device, int64_t n, Body body) {
  if (runs_cuda(device) || n == 1) return body(0, n);
  at::parallel_for(0, n, 1, [&](int64_t first, int64_t last) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // threads do not inherit the guard
    body(first, last);
  });
}

// Writes the log-likelihoods to log_prob [B, K] and, if `kept` [B, K, D] is defined, all logits to it.
void log_prob_of_blocks(const Problem& p, const Tensor& log_prob, const Tensor& kept) {
  in_parallel(p.h.device(), p.blocks.count(), [&](int64_t first, int64_t last) {
    const Buffers buffers(p, !kept.defined());
    for (int64_t i = first; i < last; ++i) {
      const Block b = p.blocks[i];
      const Tensor product = kept.defined() ? rows_of(kept, b) : buffers.product.narrow(0, 0, b.size());
      p.product(b, product);
      const Tensor logits = buffers.widened(product), x = p.x.narrow(0, b.b, b.rows), out = part(log_prob, b);
      const BernoulliLogProb params{p.plan(b, logits, x, nullptr), dtype_of(x), data(&logits), data(&x), out.mutable_data_ptr()};
      launch(p.h.device(), params, b.size(), p.dim, cpu::bernoulli_log_prob, cuda::bernoulli_log_prob);
    }
  });
}

Tensor run_forward(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x, const Tensor& kept) {
  const Tensor log_prob = at::zeros(leading_of<int64_t>(h), h.options().dtype(accumulate_type(h)));
  if (log_prob.numel() > 0 && weight.size(0) > 0) {
    log_prob_of_blocks(Problem(h, weight, bias, x), with_samples(log_prob, h), kept);
  }
  return log_prob;
}

Tensor forward(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  check<int64_t>(h, weight, bias, x);
  return run_forward(h, weight, bias, x, Tensor());
}

LogProbAndLogits forward_with_logits(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  check<int64_t>(h, weight, bias, x);
  const Tensor logits = at::empty(logits_shape<int64_t>(h, weight), h.options());
  return {run_forward(h, weight, bias, x, with_samples(logits, h)), logits};
}

// Sums over the rows are cut into at most this many partial sums, so that their order does not depend on the number of threads.
constexpr int64_t kSegments = 16;

// Where the gradients go. A tensor is undefined if its gradient is not wanted.
struct Outputs {
  Tensor h;       // [B, K, H]
  Tensor weight;  // [segments, D, H], in the dtype of the sums
  Tensor bias;    // [segments, D], in the dtype of the sums
};

void add_products(const Problem& p, const Block& b, const Tensor& delta, const Buffers& buffers, const Outputs& out, int64_t s,
                  bool opens) {
  if (out.bias.defined()) {
    Tensor total = out.bias[s];
    opens ? at::sum_out(total, delta, 0) : total.add_(delta.sum(0));
  }
  const Tensor narrow = buffers.narrowed(delta);
  if (out.h.defined()) {
    Tensor grad = rows_of(out.h, b);
    at::mm_out(grad, narrow, p.weight);
  }
  if (!out.weight.defined()) return;
  Tensor total = out.weight[s];
  if (p.is_half()) {
    const Tensor product = at::mm(narrow.t(), rows_of(p.h, b));
    opens ? total.copy_(product) : total.add_(product);
  } else {
    at::addmm_out(total, total, narrow.t(), rows_of(p.h, b), opens ? 0 : 1);
  }
}

// Computes δ = grad (x − σ(logits)) block by block, and the products of each block's δ while it is in cache.
void gradients_of_blocks(const Problem& p, const Tensor& grad, const Tensor& kept, int64_t segments, const Outputs& out) {
  in_parallel(p.h.device(), segments, [&](int64_t first, int64_t last) {
    const Buffers buffers(p, true);
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = p.blocks.count() * s / segments, end = p.blocks.count() * (s + 1) / segments;
      for (int64_t i = begin; i < end; ++i) {
        const Block b = p.blocks[i];
        const Tensor product = kept.defined() ? rows_of(kept, b) : buffers.product.narrow(0, 0, b.size());
        if (!kept.defined()) p.product(b, product);
        const Tensor logits = buffers.widened(product), x = p.x.narrow(0, b.b, b.rows), g = part(grad, b);
        const Tensor delta = buffers.sums.narrow(0, 0, b.size());  // overwrites the logits, unless they are kept
        const BernoulliLogProbBackward params{
            p.plan(b, logits, x, &g), dtype_of(x), {data(&logits), data(&x)}, data(&g), {delta.mutable_data_ptr(), nullptr}};
        const int64_t items = b.size() * ((p.dim + kColumns - 1) / kColumns);
        launch(p.h.device(), params, items, kColumns, cpu::bernoulli_log_prob_backward, cuda::bernoulli_log_prob_backward);
        add_products(p, b, delta, buffers, out, s, i == begin);
      }
    }
  });
}

// Returns Σ_k grad logits = W (Σ_k grad h) + bias Σ_k grad, which does not need the logits.
Tensor gradient_of_x(const Problem& p, const Tensor& grad) {
  const Tensor weighted = at::bmm(grad.unsqueeze(1), p.h.to(grad.scalar_type())).squeeze(1);
  const Tensor product = at::mm(weighted, p.weight.to(grad.scalar_type()).t());
  return p.bias ? at::addr(product, grad.sum(1), p.bias->to(grad.scalar_type())) : product;
}

Gradients backward(const Tensor& grad_, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x,
                   const OptionalTensor& logits, Wanted wanted) {
  check_sums<int64_t>(grad_, h, weight, logits, check<int64_t>(h, weight, bias, x));
  wanted[2] = wanted[2] && pointer(bias);
  const auto zeros = [&](int i, at::IntArrayRef size) { return at::zeros(wanted[i] ? size : at::IntArrayRef({0}), h.options()); };
  if (grad_.numel() == 0 || weight.size(0) == 0) {
    return {zeros(0, h.sizes()), zeros(1, weight.sizes()), zeros(2, {weight.size(0)}), zeros(3, x.sizes())};
  }
  const Problem p(h, weight, bias, x);
  const Tensor grad = with_samples(grad_, h);
  const int64_t segments = std::min(p.blocks.count(), kSegments);
  const auto sums = grad.options();
  Outputs out;
  if (wanted[0]) out.h = at::empty_like(p.h);
  if (wanted[1]) out.weight = at::empty({segments, p.dim, p.h.size(2)}, sums);
  if (wanted[2]) out.bias = at::empty({segments, p.dim}, sums);
  if (wanted[0] || wanted[1] || wanted[2]) {
    gradients_of_blocks(p, grad, pointer(logits) ? with_samples(logits->contiguous(), h) : Tensor(), segments, out);
  }
  const auto total = [&](int i, const Tensor& t) {
    return wanted[i] ? (segments == 1 ? t[0] : t.sum(0)).to(h.scalar_type()) : zeros(i, {});
  };
  return {wanted[0] ? out.h.view(h.sizes()) : zeros(0, {}), total(1, out.weight), total(2, out.bias),
          wanted[3] ? gradient_of_x(p, grad).to(h.scalar_type()) : zeros(3, {})};
}

Tensor forward_meta(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  return at::empty_symint(check<c10::SymInt>(h, weight, bias, x), h.options().dtype(accumulate_type(h)));
}

LogProbAndLogits forward_with_logits_meta(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  return {forward_meta(h, weight, bias, x), at::empty_symint(logits_shape<c10::SymInt>(h, weight), h.options())};
}

Gradients backward_meta(const Tensor& grad, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x,
                        const OptionalTensor& logits, Wanted wanted) {
  check_sums<c10::SymInt>(grad, h, weight, logits, check<c10::SymInt>(h, weight, bias, x));
  const Tensor* given = pointer(bias);
  wanted[2] = wanted[2] && given;
  return std::tuple_cat(meta_gradients<4>(Op::name, {&h, &weight, given, &x}, wanted));
}

// Training keeps up to this many logits for its backward pass; if there are more, they are computed again. Keeping 5000 x 784
// logits saved 20 % of a step at H = 200 and 25 % at H = 500. Keeping 20000 x 784, which no cache holds, saved only 10 % at
// H = 200 and cost 30 % at H = 25 (docs/floors.md).
constexpr int64_t kKept = 1 << 22;

// Returns whether the logits are kept. They are not kept if sizes are symbolic: their values are unknown, and a choice would tie
// the graph to them.
bool keeps(const Tensor& h, const Tensor& weight) {
  const std::optional<int64_t> numbers = c10::multiply_integers(logits_shape<c10::SymInt>(h, weight)).maybe_as_int();
  return numbers && *numbers <= kKept;
}

struct LinearBernoulliFunction : torch::autograd::Function<LinearBernoulliFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& h, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& x) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Tensor log_prob, logits;
    if (keeps(h, weight)) {
      std::tie(log_prob, logits) = with_logits().call(h, weight, bias, x);
    } else {
      log_prob = forward_of<Op>().call(h, weight, bias, x);
    }
    const Tensor* given = pointer(bias);
    ctx->save_for_backward({h, weight, given ? *given : Tensor(), x, logits});
    return log_prob;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const Wanted wanted = wanted_gradients<4>(ctx, {true, true, saved[2].defined(), true});
    const auto grads =
        backward_of<Op>().call(grad[0], saved[0], saved[1], optional(saved[2]), saved[3], optional(saved[4]), wanted);
    return gradient_list(grads, wanted);
  }
};

// Called only by the Function above.
LogProbAndLogits autograd_with_logits(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  TORCH_CHECK_NOT_IMPLEMENTED(!needs_graph(h, weight, bias, x),
                              "linear_bernoulli_log_prob_with_logits has no derivative; use linear_bernoulli_log_prob");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return with_logits().call(h, weight, bias, x);
}

using AutogradKernel = ForwardAutograd<Op, LinearBernoulliFunction>;

}  // namespace

Tensor linear_bernoulli_log_prob(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& x) {
  return forward_of<Op>().call(h, weight, bias, x);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, AutogradKernel)

TORCH_LIBRARY_IMPL(dgmfast, CPU, m) { m.impl("linear_bernoulli_log_prob_with_logits", &forward_with_logits); }
TORCH_LIBRARY_IMPL(dgmfast, CUDA, m) { m.impl("linear_bernoulli_log_prob_with_logits", &forward_with_logits); }
TORCH_LIBRARY_IMPL(dgmfast, Meta, m) { m.impl("linear_bernoulli_log_prob_with_logits", &forward_with_logits_meta); }
TORCH_LIBRARY_IMPL(dgmfast, Autograd, m) { m.impl("linear_bernoulli_log_prob_with_logits", &autograd_with_logits); }

}  // namespace dgmfast

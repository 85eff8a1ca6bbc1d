#include "kernels/gaussian_sample.h"

#include <ATen/ops/empty.h>

#include "ops/autograd.h"
#include "ops/launch.h"
#include "ops/ops.h"

namespace dgmfast {
namespace {

using Int = c10::SymInt;
using Pair = std::tuple<Tensor, Tensor>;

struct Op {
  static constexpr const char* name = "gaussian_sample";
  using Wanted = std::array<bool, 2>;
  using Forward = Pair(const Tensor&, const Tensor&, Int, Int, const OptionalTensor&, Int, Int, Int);
  using Backward = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Int, Int, const OptionalTensor&, Int, Int,
                        Int, Wanted);
};
using Wanted = Op::Wanted;

void check_word(const char* name, const Int& first, const Int& count) {
  // symbolic values of a traced program are checked when it runs: a guard here would limit the sizes that it accepts
  if (first.is_symbolic() || count.is_symbolic()) return;
  const int64_t limit = int64_t(1) << 32;
  TORCH_CHECK_VALUE(first >= 0 && first <= limit - count, Op::name, ": ", name, " must lie in [0, 2^32) to its last draw; got ",
                    first);
}

// Checks the arguments and returns the shape of log_q, [B, K].
template <class Size>
Shape<Size> check(const Tensor& mean, const Tensor& log_var, const Size& k, const OptionalTensor& seed_tensor, const Int& stream,
                  const Int& first_row, const Int& first_sample) {
  const std::array<Arg, 2> args{{{"mean", &mean}, {"log_var", &log_var}}};
  check_floating(Op::name, args);
  Shape<Size> shape = leading_shape<Size>(Op::name, args);
  TORCH_CHECK_VALUE(k >= 1, Op::name, ": k must be at least 1; got ", k);
  TORCH_CHECK_VALUE(shape.size() == 1 || (shape.size() == 2 && k == 1), Op::name,
                    ": mean must have shape [B, D], or [B, K, D] with k = 1; got ", mean.sym_sizes(), " with k = ", k);
  if (shape.size() == 1) shape.push_back(k);
  if (const Tensor* seed = pointer(seed_tensor)) {
    check_same_device(Op::name, args[0], {"seed", seed});
    TORCH_CHECK_TYPE(seed->scalar_type() == at::kLong && seed->dim() == 0, Op::name,
                     ": seed must be an int or a 0-dimensional int64 tensor; got ", seed->scalar_type(), " of shape ",
                     seed->sym_sizes());
  }
  check_word("stream", stream, 1);
  check_word("first_row", first_row, shape[0]);
  check_word("first_sample", first_sample, shape[1]);
  return shape;
}

template <class Size>
void check_gradients(const Tensor& grad_z, const Tensor& grad_log_q, const Tensor& mean, Shape<Size> shape) {
  check_gradient<Size>(Op::name, {"grad_log_q", &grad_log_q}, {"mean", &mean}, shape);
  shape.push_back(sizes<Size>(mean).back());
  check_gradient<Size>(Op::name, {"grad_z", &grad_z}, {"mean", &mean}, shape);
}

// Returns [B, D] as [B, 1, D], so that it broadcasts over the samples, and [D] as [1, D], which broadcasts over the rows too.
Tensor per_sample(const Tensor& t, int64_t rank) { return rank == 3 ? t : t.unsqueeze(-2); }

int64_t rank_of(const Tensor& mean, const Tensor& log_var) { return std::max(mean.dim(), log_var.dim()); }

NoiseKey noise_key(const Int& seed, const OptionalTensor& seed_tensor, const Int& stream, const Int& first_row,
                   const Int& first_sample, int64_t samples) {
  const Tensor* tensor = pointer(seed_tensor);
  NoiseKey key{seed.expect_int(),
               nullptr,
               uint32_t(stream.expect_int()),
               uint32_t(first_row.expect_int()),
               uint32_t(first_sample.expect_int()),
               samples};
  if (tensor && runs_cuda(tensor->device())) {
    key.seed_on_device = tensor->const_data_ptr<int64_t>();
  } else if (tensor) {
    key.seed = *tensor->const_data_ptr<int64_t>();
  }
  return key;
}

Pair forward(const Tensor& mean_, const Tensor& log_var_, Int k, Int seed, const OptionalTensor& seed_tensor, Int stream,
             Int first_row, Int first_sample) {
  auto shape = check<int64_t>(mean_, log_var_, k.expect_int(), seed_tensor, stream, first_row, first_sample);
  const int64_t rank = rank_of(mean_, log_var_);
  const Tensor mean = with_unit_stride(per_sample(mean_, rank)), log_var = with_unit_stride(per_sample(log_var_, rank));
  const RowPlan plan = forward_plan(Op::name, shape, mean.size(-1), dtype_of(mean), {{{&mean}, {&log_var}}});
  const Tensor log_q = at::empty(shape, mean.options());
  const NoiseKey key = noise_key(seed, seed_tensor, stream, first_row, first_sample, shape[1]);
  shape.push_back(plan.dim);
  const Tensor z = at::empty(shape, mean.options());
  const GaussianSample params{plan, key, data(&mean), data(&log_var), z.mutable_data_ptr(), log_q.mutable_data_ptr()};
  launch(mean.device(), params, log_q.numel(), plan.dim, cpu::gaussian_sample, cuda::gaussian_sample);
  return {z, log_q};
}

Pair backward(const Tensor& grad_z_, const Tensor& grad_log_q, const Tensor& mean_, const Tensor& log_var_, Int k, Int seed,
              const OptionalTensor& seed_tensor, Int stream, Int first_row, Int first_sample, Wanted wanted) {
  const auto shape = check<int64_t>(mean_, log_var_, k.expect_int(), seed_tensor, stream, first_row, first_sample);
  check_gradients(grad_z_, grad_log_q, mean_, shape);
  const int64_t rank = rank_of(mean_, log_var_);
  const Tensor mean = per_sample(mean_, rank), log_var = with_unit_stride(per_sample(log_var_, rank));
  const Tensor grad_z = with_unit_stride(grad_z_);
  const NoiseKey key = noise_key(seed, seed_tensor, stream, first_row, first_sample, shape[1]);
  const auto fill = [&](const RowPlan& plan) {
    return GaussianSampleBackward{plan, key, data(&log_var), data(&grad_z), data(&grad_log_q), {}};
  };
  const auto grads = launch_gradients<2, GaussianSampleBackward>(
      Op::name, shape, mean.size(-1),
      {{{&mean}, {&log_var}, {&grad_z}, {&grad_log_q, PlanInput::Kind::scalar}, {nullptr, PlanInput::Kind::linear}}}, wanted,
      fill, cpu::gaussian_sample_backward, cuda::gaussian_sample_backward);
  return {wanted[0] ? grads[0].view(mean_.sizes()) : grads[0], wanted[1] ? grads[1].view(log_var_.sizes()) : grads[1]};
}

Pair forward_meta(const Tensor& mean, const Tensor& log_var, Int k, Int, const OptionalTensor& seed_tensor, Int stream,
                  Int first_row, Int first_sample) {
  auto shape = check<Int>(mean, log_var, k, seed_tensor, stream, first_row, first_sample);
  const Tensor log_q = at::empty_symint(shape, mean.options());
  shape.push_back(mean.sym_size(-1));
  return {at::empty_symint(shape, mean.options()), log_q};
}

Pair backward_meta(const Tensor& grad_z, const Tensor& grad_log_q, const Tensor& mean, const Tensor& log_var, Int k, Int,
                   const OptionalTensor& seed_tensor, Int stream, Int first_row, Int first_sample, Wanted wanted) {
  check_gradients(grad_z, grad_log_q, mean, check<Int>(mean, log_var, k, seed_tensor, stream, first_row, first_sample));
  return std::tuple_cat(meta_gradients<2>(Op::name, {&mean, &log_var}, wanted));
}

}  // namespace

Pair gaussian_sample(const Tensor& mean, const Tensor& log_var, int64_t k, int64_t seed, const OptionalTensor& seed_tensor,
                     int64_t stream, int64_t first_row, int64_t first_sample) {
  return forward_of<Op>().call(mean, log_var, k, seed, seed_tensor, stream, first_row, first_sample);
}

DGMFAST_REGISTER(Op, forward, backward, forward_meta, backward_meta, ForwardAutograd<Op>)

}  // namespace dgmfast

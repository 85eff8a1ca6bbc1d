// The ops as C++ functions. Each calls its typed dispatcher handle, so that autograd, autocast and tracing see the call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace dgmfast {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor gaussian_kl(const at::Tensor& mean_q, const at::Tensor& log_var_q, const OptionalTensor& mean_p,
                       const OptionalTensor& log_var_p);
at::Tensor gaussian_log_prob(const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_var);
std::tuple<at::Tensor, at::Tensor> gaussian_sample(const at::Tensor& mean, const at::Tensor& log_var, int64_t k, int64_t seed,
                                                   const OptionalTensor& seed_tensor, int64_t stream, int64_t first_row,
                                                   int64_t first_sample);
std::tuple<at::Tensor, at::Tensor> gaussian_merge(const at::Tensor& mean_q, const at::Tensor& log_var_q, const at::Tensor& mean_p,
                                                  const at::Tensor& log_var_p);
at::Tensor bernoulli_log_prob(const at::Tensor& logits, const at::Tensor& x);
at::Tensor linear_bernoulli_log_prob(const at::Tensor& h, const at::Tensor& weight, const OptionalTensor& bias,
                                     const at::Tensor& x);
at::Tensor mlp_bernoulli_log_prob(const at::Tensor& h, at::TensorList weights, at::TensorList biases, const at::Tensor& x,
                                  std::optional<std::string_view> activation);
at::Tensor importance_bound(const at::Tensor& log_w, int64_t dim);
at::Tensor importance_state(const at::Tensor& log_w, const OptionalTensor& state);
at::Tensor marginalize_labels(const at::Tensor& logits, const at::Tensor& values);
at::Tensor label_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& label_weight, const OptionalTensor& bias,
                        std::optional<std::string_view> activation);
at::Tensor masked_conv2d(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, std::string_view mask,
                         int64_t colors, int64_t unmasked_inputs);

}  // namespace dgmfast

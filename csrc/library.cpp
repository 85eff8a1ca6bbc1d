// The schemas of all ops, and the Python module dgmfast._C, which calls the ops eagerly.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "kernels/kernel.h"
#include "kernels/mlp_bernoulli_log_prob.h"
#include "ops/ops.h"
#include "ops/pixelcnn_sampler.h"

TORCH_LIBRARY(dgmfast, m) {
  m.def("gaussian_kl(Tensor mean_q, Tensor log_var_q, Tensor? mean_p=None, Tensor? log_var_p=None) -> Tensor");
  m.def(
      "gaussian_kl_backward(Tensor grad, Tensor mean_q, Tensor log_var_q, Tensor? mean_p, Tensor? log_var_p, bool[4] wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("gaussian_log_prob(Tensor x, Tensor? mean=None, Tensor? log_var=None) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad, Tensor x, Tensor? mean, Tensor? log_var, bool[3] wanted)"
      " -> (Tensor, Tensor, Tensor)");

  m.def(
      "gaussian_sample(Tensor mean, Tensor log_var, SymInt k, SymInt seed, Tensor? seed_tensor, SymInt stream, SymInt first_row,"
      " SymInt first_sample) -> (Tensor z, Tensor log_q)");
  m.def(
      "gaussian_sample_backward(Tensor grad_z, Tensor grad_log_q, Tensor mean, Tensor log_var, SymInt k, SymInt seed,"
      " Tensor? seed_tensor, SymInt stream, SymInt first_row, SymInt first_sample, bool[2] wanted) -> (Tensor, Tensor)");

  m.def("gaussian_merge(Tensor mean_q, Tensor log_var_q, Tensor mean_p, Tensor log_var_p) -> (Tensor mean, Tensor log_var)");
  m.def(
      "gaussian_merge_backward(Tensor grad_mean, Tensor grad_log_var, Tensor mean_q, Tensor log_var_q, Tensor mean_p,"
      " Tensor log_var_p, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("bernoulli_log_prob(Tensor logits, Tensor x) -> Tensor");
  m.def("bernoulli_log_prob_backward(Tensor grad, Tensor logits, Tensor x, bool[2] wanted) -> (Tensor, Tensor)");

  m.def("linear_bernoulli_log_prob(Tensor h, Tensor weight, Tensor? bias, Tensor x) -> Tensor");
  m.def(
      "linear_bernoulli_log_prob_with_logits(Tensor h, Tensor weight, Tensor? bias, Tensor x)"
      " -> (Tensor log_prob, Tensor logits)");
  m.def(
      "linear_bernoulli_log_prob_backward(Tensor grad, Tensor h, Tensor weight, Tensor? bias, Tensor x, Tensor? logits,"
      " bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("mlp_bernoulli_log_prob(Tensor h, Tensor[] weights, Tensor[] biases, Tensor x, str? activation=None) -> Tensor");

  m.def("importance_bound(Tensor log_w, int dim=-1) -> Tensor");
  m.def("importance_bound_backward(Tensor grad, Tensor log_w, int dim) -> (Tensor)");

  m.def("importance_state(Tensor log_w, Tensor? state=None) -> Tensor");

  m.def("marginalize_labels(Tensor logits, Tensor values) -> Tensor");
  m.def("marginalize_labels_backward(Tensor grad, Tensor logits, Tensor values, bool[2] wanted) -> (Tensor, Tensor)");

  m.def("label_linear(Tensor x, Tensor weight, Tensor label_weight, Tensor? bias=None, str? activation=None) -> Tensor");
  m.def(
      "label_linear_backward(Tensor grad, Tensor out, Tensor x, Tensor weight, Tensor label_weight, Tensor? bias,"
      " str? activation, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "masked_conv2d(Tensor x, Tensor weight, Tensor? bias=None, str mask=\"B\", int colors=1, int unmasked_inputs=0) -> Tensor");
  m.def(
      "masked_conv2d_backward(Tensor grad, Tensor x, Tensor weight, str mask, int colors, int unmasked_inputs, bool[3] wanted)"
      " -> (Tensor, Tensor, Tensor)");
}

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("gaussian_kl", &dgmfast::gaussian_kl, py::arg("mean_q"), py::arg("log_var_q"), py::arg("mean_p") = py::none(),
        py::arg("log_var_p") = py::none(), no_gil);
  m.def("gaussian_log_prob", &dgmfast::gaussian_log_prob, py::arg("x"), py::arg("mean") = py::none(),
        py::arg("log_var") = py::none(), no_gil);
  m.def("gaussian_sample", &dgmfast::gaussian_sample, py::arg("mean"), py::arg("log_var"), py::arg("k"), py::arg("seed"),
        py::arg("seed_tensor"), py::arg("stream"), py::arg("first_row"), py::arg("first_sample"), no_gil);
  m.def("gaussian_merge", &dgmfast::gaussian_merge, py::arg("mean_q"), py::arg("log_var_q"), py::arg("mean_p"),
        py::arg("log_var_p"), no_gil);
  m.def("bernoulli_log_prob", &dgmfast::bernoulli_log_prob, py::arg("logits"), py::arg("x"), no_gil);
  m.def("linear_bernoulli_log_prob", &dgmfast::linear_bernoulli_log_prob, py::arg("h"), py::arg("weight"), py::arg("bias"),
        py::arg("x"), no_gil);
  m.def(
      "mlp_bernoulli_log_prob",
      [](const at::Tensor& h, const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases, const at::Tensor& x,
         std::optional<std::string_view> activation) {
        return dgmfast::mlp_bernoulli_log_prob(h, weights, biases, x, activation);
      },
      py::arg("h"), py::arg("weights"), py::arg("biases"), py::arg("x"), py::arg("activation") = py::none(), no_gil);
  m.def("importance_bound", &dgmfast::importance_bound, py::arg("log_w"), py::arg("dim") = -1, no_gil);
  m.def("importance_state", &dgmfast::importance_state, py::arg("log_w"), py::arg("state") = py::none(), no_gil);
  m.def("marginalize_labels", &dgmfast::marginalize_labels, py::arg("logits"), py::arg("values"), no_gil);
  m.def("label_linear", &dgmfast::label_linear, py::arg("x"), py::arg("weight"), py::arg("label_weight"),
        py::arg("bias") = py::none(), py::arg("activation") = py::none(), no_gil);
  m.def("masked_conv2d", &dgmfast::masked_conv2d, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
        py::arg("mask") = "B", py::arg("colors") = 1, py::arg("unmasked_inputs") = 0, no_gil);

  using Sampler = dgmfast::PixelCnnSampler;
  py::class_<Sampler>(m, "PixelCNNSampler")
      .def(py::init([](const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& contexts,
                       const std::vector<bool>& relu, const std::vector<bool>& residual, int64_t colors, const std::string& kind,
                       int64_t levels, double temperature, const at::Tensor& uniforms, const dgmfast::OptionalTensor& observed,
                       const dgmfast::OptionalTensor& keep) {
             const Sampler::Output output{kind, levels, temperature};
             return std::make_unique<Sampler>(weights, contexts, relu, residual, colors, output, uniforms, observed, keep);
           }),
           py::arg("weights"), py::arg("contexts"), py::arg("relu"), py::arg("residual"), py::arg("colors"), py::arg("kind"),
           py::arg("levels"), py::arg("temperature"), py::arg("uniforms"), py::arg("observed") = py::none(),
           py::arg("keep") = py::none(), no_gil)
      .def("rows", &Sampler::rows, py::arg("begin"), py::arg("end"), no_gil)
      .def_property_readonly("image", &Sampler::image);

  m.def("isa", [] { return dgmfast::isa_name(dgmfast::active_isa()); });
  m.def("set_isa", [](const char* name) { dgmfast::set_isa(dgmfast::isa_by_name(name)); });
  dgmfast::active_isa();  // an invalid DGMFAST_CPU raises at import, not at the first op
  m.attr("max_mlp_layers") = dgmfast::kMaxMlpLayers;
  m.attr("cuda_architectures") = DGMFAST_CUDA_ARCHITECTURES;
#ifdef DGMFAST_CUDA_ON_HOST
  m.attr("cuda_on_host") = true;  // tests/support/op_cases.py reads this: in such a build the CPU takes the dtypes of CUDA
#else
  m.attr("cuda_on_host") = false;
#endif
}

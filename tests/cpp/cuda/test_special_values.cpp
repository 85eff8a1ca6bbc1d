// Tests special values in every combination: the CUDA results are finite, infinite or NaN where those of the CPU are.
#include "cuda/stored.h"
#include "geometry.h"
#include "kernels/bernoulli_log_prob.h"
#include "kernels/gaussian_kl.h"
#include "kernels/gaussian_log_prob.h"
#include "kernels/gaussian_merge.h"
#include "kernels/gaussian_sample.h"
#include "kernels/importance_bound.h"
#include "kernels/importance_state.h"
#include "kernels/label_linear.h"
#include "kernels/marginalize_labels.h"

using namespace dgmfast;
using namespace geometry;

namespace {

const double kInf = INFINITY;
const std::vector<double> kSpecial = {0.0, 1.0, -1.0, 1e-30, 80.0, -80.0, 1e4, -1e4, 3e38, -3e38, kInf, -kInf, NAN};

int kind_of(double x) { return std::isnan(x) ? 3 : std::isinf(x) ? (x > 0 ? 1 : 2) : 0; }

// Returns all combinations of the values in kSpecial, as [inputs][combinations].
std::vector<std::vector<float>> combinations(int inputs) {
  size_t n = 1;
  for (int i = 0; i < inputs; ++i) n *= kSpecial.size();
  std::vector<std::vector<float>> all(inputs, std::vector<float>(n));
  for (size_t c = 0; c < n; ++c) {
    size_t rest = c;
    for (int i = 0; i < inputs; ++i) all[i][c] = float(kSpecial[rest % kSpecial.size()]), rest /= kSpecial.size();
  }
  return all;
}

RowPlan one_wide(size_t rows, int inputs) {
  RowPlan plan;
  plan.dim = 1, plan.dtype = DType::f32;
  plan.outer.dims = 1, plan.outer.rows = plan.outer.size[0] = int64_t(rows);
  for (int i = 0; i < inputs; ++i) plan.outer.stride[i][0] = 1;
  return plan;
}

void same_kind(const char* what, const std::vector<float>& cuda, const std::vector<float>& cpu,
               const std::vector<std::vector<float>>& in, bool sums = false) {
  int bad = 0;
  for (size_t c = 0; c < cuda.size(); ++c) {
    double largest = 1e-30;  // the size of what is added up, because sums in another order round differently
    if (sums) {
      for (const auto& v : in) largest = std::max(largest, std::isfinite(v[c]) ? std::fabs(double(v[c])) : 0.0);
      largest = largest * 1e-6 + 1e-6;
    }
    const bool same = kind_of(cuda[c]) == kind_of(cpu[c]) &&
                      (kind_of(cpu[c]) != 0 || std::fabs(double(cuda[c]) - cpu[c]) <= 1e-4 * std::fabs(double(cpu[c])) + largest);
    if (same) continue;
    if (++bad <= 3) {
      std::fprintf(stderr, "%s of", what);
      for (const auto& v : in) std::fprintf(stderr, " %g", v[c]);
      std::fprintf(stderr, ": CUDA %g, CPU %g\n", cuda[c], cpu[c]);
    }
  }
  if (bad) std::fprintf(stderr, "%s: %d of %zu differ\n", what, bad, cuda.size());
  CHECK(bad == 0);
}

}  // namespace

TEST(special_values) {
  for (int inputs : {2, 4}) {
    const auto in = combinations(inputs);
    const size_t n = in[0].size();
    std::vector<float> a(n, -7), b(n, -7);
    const RowPlan plan = one_wide(n, 5);
    const std::vector<float> ones(n, 1);
    const auto data = [&](int i) -> const void* { return i < inputs ? in[i].data() : nullptr; };
    cuda::gaussian_kl(GaussianKl{plan, data(0), data(1), data(2), data(3), a.data()}, nullptr);
    cpu::gaussian_kl(GaussianKl{plan, data(0), data(1), data(2), data(3), b.data()}, 0, n);
    same_kind("gaussian_kl", a, b, in);
    for (int wanted = 0; wanted < inputs; ++wanted) {
      GaussianKlBackward p{plan, {data(0), data(1), data(2), data(3)}, ones.data(), {}};
      p.grad_input[wanted] = a.data();
      cuda::gaussian_kl_backward(p, nullptr);
      p.grad_input[wanted] = b.data();
      cpu::gaussian_kl_backward(p, 0, n);
      same_kind("gaussian_kl_backward", a, b, in);
    }
  }
  {
    const auto in = combinations(3);
    const size_t n = in[0].size();
    std::vector<float> a(n, -7), b(n, -7);
    const std::vector<float> ones(n, 1);
    const RowPlan plan = one_wide(n, 4);
    cuda::gaussian_log_prob(GaussianLogProb{plan, in[0].data(), in[1].data(), in[2].data(), a.data()}, nullptr);
    cpu::gaussian_log_prob(GaussianLogProb{plan, in[0].data(), in[1].data(), in[2].data(), b.data()}, 0, n);
    same_kind("gaussian_log_prob", a, b, in);
    for (int wanted = 0; wanted < 3; ++wanted) {
      GaussianLogProbBackward p{plan, {in[0].data(), in[1].data(), in[2].data()}, ones.data(), {}};
      p.grad_input[wanted] = a.data();
      cuda::gaussian_log_prob_backward(p, nullptr);
      p.grad_input[wanted] = b.data();
      cpu::gaussian_log_prob_backward(p, 0, n);
      same_kind("gaussian_log_prob_backward", a, b, in);
    }
  }
  {
    const auto in = combinations(4);
    const size_t n = in[0].size();
    std::vector<float> a(n, -7), b(n, -7), c(n, -7), d(n, -7);
    const std::vector<float> ones(n, 1);
    const RowPlan plan = one_wide(n, 6);
    GaussianMerge p{plan, {in[0].data(), in[1].data(), in[2].data(), in[3].data()}, a.data(), b.data()};
    cuda::gaussian_merge(p, nullptr);
    p.mean = c.data(), p.log_var = d.data();
    cpu::gaussian_merge(p, 0, n);
    same_kind("gaussian_merge mean", a, c, in), same_kind("gaussian_merge log_var", b, d, in);
    for (int wanted = 0; wanted < 4; ++wanted) {
      GaussianMergeBackward q{plan, {in[0].data(), in[1].data(), in[2].data(), in[3].data()}, ones.data(), ones.data(), {}};
      q.grad_input[wanted] = a.data();
      cuda::gaussian_merge_backward(q, nullptr);
      q.grad_input[wanted] = b.data();
      cpu::gaussian_merge_backward(q, 0, n);
      same_kind("gaussian_merge_backward", a, b, in);
    }
  }
  {
    const auto in = combinations(2);
    const size_t n = in[0].size();
    std::vector<float> a(n, -7), b(n, -7), c(n, -7), d(n, -7);
    const std::vector<float> ones(n, 1);
    const RowPlan plan = one_wide(n, 5);
    cuda::bernoulli_log_prob(BernoulliLogProb{plan, DType::f32, in[0].data(), in[1].data(), a.data()}, nullptr);
    cpu::bernoulli_log_prob(BernoulliLogProb{plan, DType::f32, in[0].data(), in[1].data(), b.data()}, 0, n);
    same_kind("bernoulli_log_prob", a, b, in);
    for (int wanted = 0; wanted < 2; ++wanted) {
      BernoulliLogProbBackward p{plan, DType::f32, {in[0].data(), in[1].data()}, ones.data(), {}};
      p.grad_input[wanted] = a.data();
      cuda::bernoulli_log_prob_backward(p, nullptr);
      p.grad_input[wanted] = b.data();
      cpu::bernoulli_log_prob_backward(p, 0, n);
      same_kind("bernoulli_log_prob_backward", a, b, in);
    }
    const NoiseKey key{5, nullptr, 1, 0, 0, 1};
    cuda::gaussian_sample(GaussianSample{plan, key, in[0].data(), in[1].data(), a.data(), b.data()}, nullptr);
    cpu::gaussian_sample(GaussianSample{plan, key, in[0].data(), in[1].data(), c.data(), d.data()}, 0, n);
    same_kind("gaussian_sample z", a, c, in), same_kind("gaussian_sample log_q", b, d, in);
  }
  for (const int dim : {2, 3, 5}) {  // rows of this many special values, for the bound, the state and the labels
    const auto in = combinations(dim > 3 ? 3 : dim);
    const size_t n = in[0].size();
    std::vector<float> rows(n * dim), values(n * dim), a(n, -7), b(n, -7), ga(n * dim, -7), gb(n * dim, -7);
    std::vector<double> sa(n * 5, -7), sb(n * 5, -7);
    for (size_t c = 0; c < n; ++c) {
      for (int d = 0; d < dim; ++d) rows[c * dim + d] = d < int(in.size()) ? in[d][c] : 0.5f, values[c * dim + d] = float(d);
    }
    RowPlan plan = one_wide(n, 4);
    plan.dim = dim;
    plan.outer.stride[0][0] = plan.outer.stride[1][0] = dim;
    cuda::importance_bound(ImportanceBound{plan, rows.data(), a.data()}, nullptr);
    cpu::importance_bound(ImportanceBound{plan, rows.data(), b.data()}, 0, n);
    same_kind("importance_bound", a, b, in, true);
    plan.outer.stride[1][0] = 5;
    cuda::importance_state(ImportanceState{plan, rows.data(), nullptr, sa.data()}, nullptr);
    cpu::importance_state(ImportanceState{plan, rows.data(), nullptr, sb.data()}, 0, n);
    for (int k = 0; k < 5; ++k) {
      for (size_t c = 0; c < n; ++c) {
        a[c] = float(sa[c * 5 + k]), b[c] = float(sb[c * 5 + k]);
      }
      same_kind("importance_state", a, b, in, true);
    }
    plan.outer.stride[1][0] = dim;
    cuda::marginalize_labels(MarginalizeLabels{plan, rows.data(), values.data(), a.data(), nullptr}, nullptr);
    cpu::marginalize_labels(MarginalizeLabels{plan, rows.data(), values.data(), b.data(), nullptr}, 0, n);
    same_kind("marginalize_labels of logits", a, b, in);
    cuda::marginalize_labels(MarginalizeLabels{plan, values.data(), rows.data(), a.data(), nullptr}, nullptr);
    cpu::marginalize_labels(MarginalizeLabels{plan, values.data(), rows.data(), b.data(), nullptr}, 0, n);
    same_kind("marginalize_labels of values", a, b, in);
  }
  {  // activations
    std::vector<float> x;
    for (double v : kSpecial) x.push_back(float(v));
    for (double v : {19.9, 20.0, 20.1, -20.0, -100.0, -105.0, 1e-8, -1e-8, 9.1, -9.1, 0.3, -0.3}) x.push_back(float(v));
    const std::vector<float> zero{0};
    for (int act = 0; act < 6; ++act) {
      const int64_t n = int64_t(x.size());
      std::vector<float> a(n, -7), b(n, -7), ga(n, -7), gb(n, -7), ones(n, 1);
      cuda::label_linear(LabelLinear{1, 1, n, DType::f32, Activation(act), x.data(), zero.data(), a.data()}, nullptr);
      cpu::label_linear(LabelLinear{1, 1, n, DType::f32, Activation(act), x.data(), zero.data(), b.data()}, 0, n);
      same_kind(("activation " + std::to_string(act)).c_str(), a, b, {x});
      LabelLinearBackward p{1, 1, n, n, DType::f32, Activation(act), ones.data(), b.data(), ga.data(), nullptr};
      cuda::label_linear_backward(p, nullptr);
      p.grad_shared = gb.data();
      cpu::label_linear_backward(p, 0, 1);
      same_kind(("gradient of activation " + std::to_string(act)).c_str(), ga, gb, {x, b});
    }
  }
  CHECK(emu::counts().errors == 0);
}

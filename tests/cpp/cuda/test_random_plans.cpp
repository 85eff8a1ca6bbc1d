// Tests the CUDA kernels against the CPU kernels in double, on random plans: several leading dimensions, broadcast inputs, gaps,
// rows that begin where packs are not aligned, every stored type, and partial sums.
#include <array>
#include <functional>

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

// Numbers in the type that a kernel stores, and the same numbers in double, in the same order. The stored numbers begin `shift`
// elements into their memory.
struct Numbers {
  DType type;
  std::vector<unsigned char> bytes;
  std::vector<double> wide;
  int64_t shift = 0;

  Numbers() = default;
  Numbers(DType type, int64_t n, int64_t shift, const std::function<double()>& draw) : type(type), shift(shift) {
    bytes.resize((n + shift) * size_of(type));
    wide.resize(n);
    for (int64_t i = 0; i < n; ++i) wide[i] = write(type, bytes.data(), i + shift, draw());
  }
  const void* stored() const { return bytes.empty() ? nullptr : bytes.data() + shift * size_of(type); }
  const void* doubles() const { return wide.empty() ? nullptr : wide.data(); }
};

struct Out {
  DType type;
  std::vector<unsigned char> bytes;
  Out(DType type, int64_t n) : type(type), bytes(n * size_of(type), 0xFF) {}
  void* data() { return bytes.data(); }
  double operator[](int64_t i) const { return read(type, bytes.data(), i); }
};

// The layout of a case: the leading dimensions and, for each input, over which of them it is broadcast.
struct Layout {
  std::vector<int64_t> leading;
  int64_t dim;
  std::vector<uint32_t> broadcast;           // bit d is set if the input is broadcast over leading dimension d
  std::vector<std::vector<int64_t>> stride;  // [input][leading dimension]
  std::vector<int64_t> size;                 // how many numbers each input has

  int64_t rows() const {
    int64_t n = 1;
    for (int64_t l : leading) n *= l;
    return n;
  }
};

enum class Kind { row, scalar, linear };

Layout random_layout(Random& r, int64_t dim, const std::vector<Kind>& kinds, bool gaps) {
  Layout l;
  l.dim = dim;
  const int rank = int(r.between(0, 4));
  for (int d = 0; d < rank; ++d) l.leading.push_back(int64_t(r.between(1, dim > 500 ? 3 : 5)));
  for (const Kind kind : kinds) {
    uint32_t mask = kind == Kind::row ? uint32_t(r.between(0, 16)) & ((1u << rank) - 1) : 0;
    if (r.unit() < 0.4) mask = 0;
    std::vector<int64_t> stride(rank);
    int64_t next = kind == Kind::row ? dim : 1;
    if (gaps && kind == Kind::row && r.unit() < 0.5) next += int64_t(r.between(0, 6));
    for (int d = rank; d-- > 0;) {
      if (mask >> d & 1 || l.leading[d] == 1) continue;
      stride[d] = next, next *= l.leading[d];
    }
    l.broadcast.push_back(mask), l.stride.push_back(stride), l.size.push_back(next);
  }
  return l;
}

RowPlan plan_of(const Layout& l, DType type, uint32_t reduced = 0) {
  RowPlan plan;
  plan.dim = l.dim, plan.dtype = type;
  for (size_t d = 0; d < l.leading.size(); ++d) {
    Grid& grid = reduced >> d & 1 ? plan.inner : plan.outer;
    grid.rows *= l.leading[d];
    if (l.leading[d] == 1) continue;
    grid.size[grid.dims] = l.leading[d];
    for (size_t i = 0; i < l.stride.size(); ++i) grid.stride[i][grid.dims] = l.stride[i][d];
    ++grid.dims;
  }
  return plan;
}

DType accumulate_type(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }

double roundings(DType type) {
  return type == DType::f64 ? 2.3e-16 : type == DType::f32 ? 1.2e-7 : type == DType::f16 ? 9.8e-4 : 7.9e-3;
}

void compare(const char* what, DType type, const Out& got, const std::vector<double>& exact, double size, const Layout& l) {
  for (size_t i = 0; i < exact.size(); ++i) {
    const double limit = 60 * (type == DType::f64 ? 2.3e-16 : 1.2e-7) * (size + std::fabs(exact[i])) +
                         1.01 * roundings(type) * std::fabs(exact[i]) +
                         (type == DType::f16 ? 6.1e-8 : 0);  // the spacing of the smallest float16 numbers
    if (std::fabs(got[i] - exact[i]) <= limit) continue;
    static int shown = 0;
    if (shown++ < 20) {
      std::fprintf(stderr, "%s type %d dim %ld rows %ld at %zu: got %.9g, exact %.9g, limit %.3g\n", what, int(type), long(l.dim),
                   long(l.rows()), i, got[i], exact[i], limit);
    }
    CHECK(false);
    return;
  }
  CHECK(true);
}

const std::vector<DType> kTypes = {DType::f32, DType::f64, DType::f16, DType::bf16};
const std::vector<int64_t> kDims = {0, 1, 2, 3, 4, 5, 8, 12, 31, 32, 33, 64, 100, 128, 257, 784, 4096, 4097, 4100, 8200};

template <class Body>
void random_cases(int per_dim, Body body) {
  for (const auto schedule : {emu::Schedule::forward, emu::Schedule::reverse, emu::Schedule::random}) {
    emu::set_schedule(schedule);
    Random r(7 + uint64_t(schedule));
    for (const DType type : kTypes) {
      for (const int64_t dim : kDims) {
        for (int i = 0; i < (dim > 500 ? 1 : per_dim); ++i) body(r, type, dim);
      }
    }
  }
  emu::set_schedule(emu::Schedule::forward);
  CHECK(emu::counts().errors == 0);
}

Numbers numbers(Random& r, DType type, int64_t n, double low, double high) {
  return Numbers(type, n, int64_t(r.between(0, 4)),
                 [&] { return type == DType::u8 ? double(r.unit() < 0.5) : r.between(low, high); });
}

int64_t segments_of(Random& r, const RowPlan& plan) {
  return std::min<int64_t>(std::max<int64_t>(1, plan.inner.rows), int64_t(r.between(1, 9)));
}

// Runs a backward kernel on both backends, for every group of inputs that are broadcast alike.
template <class Params>
void gradients(const char* what, Random& r, const Layout& l, DType type, int inputs, CudaKernel<Params> cuda_kernel,
               CpuKernel<Params> cpu_kernel, double size, const std::function<Params(const RowPlan&, bool stored)>& fill) {
  for (int i = 0; i < inputs; ++i) {
    RowPlan plan = plan_of(l, type, l.broadcast[i]), wide = plan;
    wide.dtype = DType::f64;
    plan.segments = segments_of(r, plan);
    const int64_t targets = plan.outer.rows * l.dim;
    if (targets == 0) continue;
    Params p = fill(plan, true), q = fill(wide, false);
    std::vector<Out> out;
    std::vector<std::vector<double>> exact(inputs);
    for (int j = 0; j < inputs; ++j) {
      const bool wanted = l.broadcast[j] == l.broadcast[i] && (j == i || r.unit() < 0.7);
      out.emplace_back(plan.segments > 1 ? accumulate_type(type) : type, wanted ? plan.segments * targets : 0),
          exact[j].resize(wanted ? targets : 0);
      p.grad_input[j] = wanted ? out[j].data() : nullptr, q.grad_input[j] = wanted ? exact[j].data() : nullptr;
    }
    cuda_kernel(p, nullptr);
    cpu_kernel(q, 0, gradient_items(wide));
    for (int j = 0; j < inputs; ++j) {
      if (exact[j].empty()) continue;
      Out total(DType::f64, targets);
      for (int64_t t = 0; t < targets; ++t) {
        double sum = 0;
        for (int64_t s = 0; s < plan.segments; ++s) sum += out[j][s * targets + t];
        write(DType::f64, total.bytes.data(), t, sum);
      }
      compare(what, type, total, exact[j], size * double(plan.inner.rows), l);
    }
  }
}

template <class Params>
void forward_rows(const char* what, const Layout& l, DType type, CudaKernel<Params> cuda_kernel, CpuKernel<Params> cpu_kernel,
                  Params p, Params q, void* Params::* output, int64_t numbers_per_row, double size) {
  if (l.rows() * numbers_per_row == 0) return;
  Out out(type, l.rows() * numbers_per_row);
  std::vector<double> exact(out.bytes.size() / size_of(type));
  p.*output = out.data(), q.*output = exact.data();
  cuda_kernel(p, nullptr);
  cpu_kernel(q, 0, l.rows());
  compare(what, type, out, exact, size, l);
}

}  // namespace

TEST(random_gaussian_kl) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    const Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::row, Kind::row, Kind::scalar}, true);
    Numbers in[5];
    for (int i = 0; i < 5; ++i) in[i] = numbers(r, type, l.size[i], -2, 2);
    for (int given = 0; given < 4; ++given) {
      const bool m = given & 1, v = given & 2;
      const auto params = [&](const RowPlan& plan, bool stored) {
        const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
        return GaussianKl{plan, data(0), data(1), m ? data(2) : nullptr, v ? data(3) : nullptr, nullptr};
      };
      forward_rows<GaussianKl>("kl", l, type, cuda::gaussian_kl, cpu::gaussian_kl, params(plan_of(l, type), true),
                               params(plan_of(l, DType::f64), false), &GaussianKl::kl, 1, double(dim));
    }
    const bool standard = r.unit() < 0.2;
    gradients<GaussianKlBackward>(
        "kl backward", r, l, type, standard ? 2 : 4, cuda::gaussian_kl_backward, cpu::gaussian_kl_backward, 200,
        [&](const RowPlan& plan, bool stored) {
          const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
          return GaussianKlBackward{
              plan, {data(0), data(1), standard ? nullptr : data(2), standard ? nullptr : data(3)}, data(4), {}};
        });
  });
}

TEST(random_gaussian_log_prob) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    const Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::row, Kind::scalar}, true);
    Numbers in[4];
    for (int i = 0; i < 4; ++i) in[i] = numbers(r, type, l.size[i], -2, 2);
    const auto fill = [&](const RowPlan& plan, bool stored) {
      const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
      return GaussianLogProb{plan, data(0), data(1), data(2), nullptr};
    };
    forward_rows<GaussianLogProb>("log_prob", l, type, cuda::gaussian_log_prob, cpu::gaussian_log_prob,
                                  fill(plan_of(l, type), true), fill(plan_of(l, DType::f64), false), &GaussianLogProb::log_prob,
                                  1, double(dim));
    gradients<GaussianLogProbBackward>("log_prob backward", r, l, type, 3, cuda::gaussian_log_prob_backward,
                                       cpu::gaussian_log_prob_backward, 100, [&](const RowPlan& plan, bool stored) {
                                         const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
                                         return GaussianLogProbBackward{plan, {data(0), data(1), data(2)}, data(3), {}};
                                       });
  });
}

TEST(random_gaussian_merge) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    const Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::row, Kind::row, Kind::row, Kind::row}, true);
    Layout full = l;
    Numbers in[6];
    for (int i = 0; i < 6; ++i) in[i] = numbers(r, type, l.size[i], -2, 2);
    const auto fill = [&](const RowPlan& plan, bool stored, void* log_var) {
      const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
      return GaussianMerge{plan, {data(0), data(1), data(2), data(3)}, nullptr, log_var};
    };
    Out log_var(type, l.rows() * dim);
    std::vector<double> exact(l.rows() * dim);
    forward_rows<GaussianMerge>("merge", l, type, cuda::gaussian_merge, cpu::gaussian_merge,
                                fill(plan_of(l, type), true, log_var.data()), fill(plan_of(l, DType::f64), false, exact.data()),
                                &GaussianMerge::mean, dim, 2);
    compare("merge log_var", type, log_var, exact, 3, l);
    gradients<GaussianMergeBackward>("merge backward", r, l, type, 4, cuda::gaussian_merge_backward, cpu::gaussian_merge_backward,
                                     10, [&](const RowPlan& plan, bool stored) {
                                       const auto data = [&](int i) { return stored ? in[i].stored() : in[i].doubles(); };
                                       return GaussianMergeBackward{
                                           plan, {data(0), data(1), data(2), data(3)}, data(4), data(5), {}};
                                     });
  });
}

TEST(random_bernoulli) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    const Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::scalar}, true);
    const bool bytes = r.unit() < 0.5;
    const Numbers logits = numbers(r, type, l.size[0], -6, 6), x = numbers(r, bytes ? DType::u8 : type, l.size[1], 0, 1),
                  grad = numbers(r, type, l.size[2], -1, 1);
    const auto data = [&](const Numbers& n, bool stored) { return stored ? n.stored() : n.doubles(); };
    const auto fill = [&](const RowPlan& plan, bool stored) {
      return BernoulliLogProb{plan, stored && bytes ? DType::u8 : plan.dtype, data(logits, stored), data(x, stored), nullptr};
    };
    forward_rows<BernoulliLogProb>("bernoulli", l, type, cuda::bernoulli_log_prob, cpu::bernoulli_log_prob,
                                   fill(plan_of(l, type), true), fill(plan_of(l, DType::f64), false), &BernoulliLogProb::log_prob,
                                   1, 4.0 * double(dim));
    gradients<BernoulliLogProbBackward>(
        "bernoulli backward", r, l, type, 2, cuda::bernoulli_log_prob_backward, cpu::bernoulli_log_prob_backward, 7,
        [&](const RowPlan& plan, bool stored) {
          return BernoulliLogProbBackward{
              plan, stored && bytes ? DType::u8 : plan.dtype, {data(logits, stored), data(x, stored)}, data(grad, stored), {}};
        });
  });
}

TEST(random_gaussian_sample) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::row, Kind::scalar, Kind::linear}, true);
    // log_q and the row's own index are linear over all rows
    const int64_t seed = int64_t(r.between(-1e15, 1e15));
    const NoiseKey key{seed, nullptr, uint32_t(r.between(0, 4e9)),
                       3,    9,       std::max<int64_t>(1, l.leading.empty() ? 1 : l.leading.back())};
    NoiseKey on_device = key;
    on_device.seed = 0, on_device.seed_on_device = &seed;
    const Numbers mean = numbers(r, type, l.size[0], -2, 2), log_var = numbers(r, type, l.size[1], -2, 2),
                  grad_z = numbers(r, type, l.size[2], -1, 1), grad_log_q = numbers(r, type, l.size[3], -1, 1);
    const auto data = [&](const Numbers& n, bool stored) { return stored ? n.stored() : n.doubles(); };
    Out log_q(type, l.rows());
    std::vector<double> exact(l.rows());
    const auto fill = [&](const RowPlan& plan, bool stored) {
      return GaussianSample{plan,
                            stored ? on_device : key,
                            data(mean, stored),
                            data(log_var, stored),
                            nullptr,
                            stored ? log_q.data() : exact.data()};
    };
    if (dim) {
      forward_rows<GaussianSample>("sample", l, type, cuda::gaussian_sample, cpu::gaussian_sample, fill(plan_of(l, type), true),
                                   fill(plan_of(l, DType::f64), false), &GaussianSample::z, dim, 20);
      compare("sample log_q", type, log_q, exact, 5.0 * double(dim), l);
    }
    gradients<GaussianSampleBackward>(
        "sample backward", r, l, type, 2, cuda::gaussian_sample_backward, cpu::gaussian_sample_backward, 20,
        [&](const RowPlan& plan, bool stored) {
          return GaussianSampleBackward{
              plan, stored ? on_device : key, data(log_var, stored), data(grad_z, stored), data(grad_log_q, stored), {}};
        });
  });
}

TEST(random_importance) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    if (dim == 0) return;
    Layout l = random_layout(r, dim, {Kind::row, Kind::scalar, Kind::scalar}, true);
    const Numbers log_w = numbers(r, type, l.size[0], -60, -50);
    Out bound(type, l.rows());
    std::vector<double> exact(l.rows()), state(l.rows() * 5), exact_state(l.rows() * 5), before(l.rows() * 5);
    cuda::importance_bound(ImportanceBound{plan_of(l, type), log_w.stored(), bound.data()}, nullptr);
    cpu::importance_bound(ImportanceBound{plan_of(l, DType::f64), log_w.doubles(), exact.data()}, 0, l.rows());
    compare("bound", type, bound, exact, 60, l);

    // a new state, and a state that is continued
    RowPlan plan = plan_of(l, type), wide = plan_of(l, DType::f64);
    for (Grid* grid : {&plan.outer, &wide.outer}) {
      int64_t next = 5;
      for (int d = grid->dims; d-- > 0; next *= grid->size[d]) grid->stride[1][d] = next;
    }
    cuda::importance_state(ImportanceState{plan, log_w.stored(), nullptr, before.data()}, nullptr);
    cuda::importance_state(ImportanceState{plan, log_w.stored(), before.data(), state.data()}, nullptr);
    cpu::importance_state(ImportanceState{wide, log_w.doubles(), nullptr, exact_state.data()}, 0, l.rows());
    for (size_t i = 0; i < before.size(); ++i)
      CHECK(std::fabs(before[i] - exact_state[i]) <= 1e-12 * (1 + std::fabs(exact_state[i])));
    cpu::importance_state(ImportanceState{wide, log_w.doubles(), before.data(), exact_state.data()}, 0, l.rows());
    for (size_t i = 0; i < before.size(); ++i)
      CHECK(std::fabs(state[i] - exact_state[i]) <= 1e-12 * (1 + std::fabs(exact_state[i])));

    const Numbers grad = numbers(r, type, l.size[2], -1, 1);
    Out out(type, l.rows() * dim);
    std::vector<double> weights(l.rows() * dim);
    l.stride[1] = l.stride[2];
    ImportanceBoundBackward p{plan_of(l, type), log_w.stored(), grad.stored(), out.data()};
    ImportanceBoundBackward q{plan_of(l, DType::f64), log_w.doubles(), grad.doubles(), weights.data()};
    cuda::importance_bound_backward(p, nullptr);
    cpu::importance_bound_backward(q, 0, l.rows());
    double most = 0;
    for (double w : weights) most = std::max(most, std::fabs(w));
    compare("bound backward", type, out, weights, most * 2, l);
  });
}

TEST(random_labels) {
  random_cases(4, [](Random& r, DType type, int64_t dim) {
    if (dim == 0) return;
    const Layout l = random_layout(r, dim, {Kind::row, Kind::row, Kind::scalar, Kind::linear}, true);
    const Numbers logits = numbers(r, type, l.size[0], -5, 5), values = numbers(r, type, l.size[1], -10, 10),
                  grad = numbers(r, type, l.size[2], -1, 1);
    const auto data = [&](const Numbers& n, bool stored) { return stored ? n.stored() : n.doubles(); };
    const auto fill = [&](const RowPlan& plan, bool stored) {
      return MarginalizeLabels{plan, data(logits, stored), data(values, stored), nullptr, nullptr};
    };
    forward_rows<MarginalizeLabels>("labels", l, type, cuda::marginalize_labels, cpu::marginalize_labels,
                                    fill(plan_of(l, type), true), fill(plan_of(l, DType::f64), false), &MarginalizeLabels::bound,
                                    1, 20);
    const DType real = accumulate_type(type);
    Out sums(real, l.rows() * kLabelSums);
    std::vector<double> exact(l.rows() * kLabelSums);
    MarginalizeLabels p = fill(plan_of(l, type), true), q = fill(plan_of(l, DType::f64), false);
    p.sums = sums.data(), q.sums = exact.data();
    cuda::marginalize_labels(p, nullptr);
    cpu::marginalize_labels(q, 0, l.rows());
    compare("label sums", real, sums, exact, 20, l);
    gradients<MarginalizeLabelsBackward>("labels backward", r, l, type, 2, cuda::marginalize_labels_backward,
                                         cpu::marginalize_labels_backward, 20, [&](const RowPlan& plan, bool stored) {
                                           return MarginalizeLabelsBackward{
                                               plan,
                                               {data(logits, stored), data(values, stored)},
                                               data(grad, stored),
                                               stored ? static_cast<const void*>(sums.data()) : exact.data(),
                                               {}};
                                         });
  });
}

TEST(random_label_linear) {
  for (const DType type : kTypes) {
    for (const auto [rows, labels, dim] :
         {std::array<int64_t, 3>{3, 10, 17}, {130, 2, 5}, {1, 1, 1}, {40, 3, 129}, {7, 1, 300}, {2, 0, 4}}) {
      Random r(rows * labels + dim);
      const Numbers shared = numbers(r, type, rows * dim, -4, 4), label_weight = numbers(r, type, labels * dim, -4, 4),
                    grad = numbers(r, type, rows * labels * dim, -1, 1);
      const Layout l{{rows}, dim, {}, {}, {}};
      for (int a = 0; a < 6; ++a) {
        Out out(type, rows * labels * dim);
        std::vector<double> exact(rows * labels * dim);
        if (labels) {
          cuda::label_linear(
              LabelLinear{labels, dim, rows, type, Activation(a), shared.stored(), label_weight.stored(), out.data()}, nullptr);
          cpu::label_linear(
              LabelLinear{labels, dim, rows, DType::f64, Activation(a), shared.doubles(), label_weight.doubles(), exact.data()},
              0, rows * labels);
          compare("label_linear", type, out, exact, 8, l);
        }
        for (size_t i = 0; i < exact.size(); ++i) exact[i] = out[i];
        for (const int64_t segment : {rows, int64_t(1), int64_t(7)}) {
          LabelLinearBackward p{labels, dim, rows, segment, type, Activation(a), grad.stored(), out.data(), nullptr, nullptr};
          LabelLinearBackward q{labels,         dim,          rows,    segment, DType::f64, Activation(a),
                                grad.doubles(), exact.data(), nullptr, nullptr};
          Out by_row(type, rows * dim), by_label(accumulate_type(type), p.segments() * labels * dim);
          std::vector<double> exact_row(rows * dim), exact_label(p.segments() * labels * dim);
          p.grad_shared = by_row.data(), p.grad_label_weight = by_label.data();
          q.grad_shared = exact_row.data(), q.grad_label_weight = exact_label.data();
          cuda::label_linear_backward(p, nullptr);
          cpu::label_linear_backward(q, 0, q.segments() * ((dim + kLabelColumns - 1) / kLabelColumns));
          compare("label_linear rows", type, by_row, exact_row, double(labels), l);
          compare("label_linear labels", type, by_label, exact_label, double(segment), l);
        }
      }
    }
  }
}

// Tests the Gaussian kernels on every instruction set, at odd sizes and layouts, against long double.
#include "geometry.h"

#include "kernels/gaussian_kl.h"
#include "kernels/gaussian_log_prob.h"
#include "kernels/gaussian_merge.h"
#include "kernels/gaussian_sample.h"
#include "math/philox.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;
const std::vector<int> kWanted = {15, 1, 2, 4, 8, 9};  // wanted gradients, as bits: all, each alone, two
constexpr Long kLogTwoPi = 1.837877066409345483560659472811235279L;

// Calls body for every dim, with gaps of 0, 1 or 2 numbers between rows.
template <class Body>
void forward_shapes(Body body) {
  for (const int64_t dim : kSizes) body(Shape{dim > 1000 ? 2 : 5, 1, dim}, dim % 3);
}

// Calls body for gradients with one inner row, with a few, and with more than the 64 that are summed before they are added to the
// total.
template <class Body>
void backward_shapes(Body body) {
  for (const int64_t dim : kSizes) {
    if (dim < 1000) body(Shape{3, 1, dim}, 0), body(Shape{2, 5, dim}, 2);
  }
  body(Shape{1, 130, 17}, 0), body(Shape{1, 64, 9}, 1), body(Shape{1, 65, 3}, 0), body(Shape{1, 1, 784}, 0);
}

template <class T>
void kl_forward() {
  forward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> mean_q(s, true, true, gap, 1, -2, 2), log_var_q(s, true, true, 0, 2, -2, 2),
        mean_p(s, false, false, 0, 3, -2, 2), log_var_p(s, true, true, gap, 4, -2, 2);
    for (int given = 0; given < 4; ++given) {
      const bool has_mean = given & 1, has_log_var = given & 2;
      std::vector<T> kl(s.outer);
      const RowPlan plan = make_plan<T>(s, {&mean_q, &log_var_q, &mean_p, &log_var_p});
      const GaussianKl p{plan,
                         mean_q.data.data(),
                         log_var_q.data.data(),
                         has_mean ? mean_p.data.data() : nullptr,
                         has_log_var ? log_var_p.data.data() : nullptr,
                         kl.data()};
      run(backend::gaussian_kl, p, s.outer);
      for (int64_t r = 0; r < s.outer; ++r) {
        Long sum = 0;
        for (int64_t d = 0; d < s.dim; ++d) {
          const Long mp = has_mean ? mean_p.row(r)[d] : T(0), vp = has_log_var ? log_var_p.row(r)[d] : T(0);
          const Long vq = log_var_q.row(r)[d], distance = mean_q.row(r)[d] - mp;
          sum += (vp - vq + std::exp(vq - vp) + distance * distance * std::exp(-vp) - 1) / 2;
        }
        CHECK(near(kl[r], sum, sum));
      }
    }
  });
}

template <class T>
void kl_backward() {
  backward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> mean_q(s, true, false, gap, 1, -2, 2), log_var_q(s, true, true, 0, 2, -2, 2),
        mean_p(s, false, true, gap, 3, -2, 2), log_var_p(s, false, false, 0, 4, -2, 2),
        grad({s.outer, s.inner, 1}, true, true, 0, 5, -1, 1);
    for (const int wanted : kWanted) {
      for (const bool standard : {false, true}) {
        if (standard && wanted > 3) continue;
        RowPlan plan = make_plan<T>(s, {&mean_q, &log_var_q, &mean_p, &log_var_p, &grad});
        std::vector<T> out[4];
        GaussianKlBackward p{plan,
                             {mean_q.data.data(), log_var_q.data.data(), standard ? nullptr : mean_p.data.data(),
                              standard ? nullptr : log_var_p.data.data()},
                             grad.data.data(),
                             {}};
        for (int i = 0; i < 4; ++i) {
          out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
          p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
        }
        run(backend::gaussian_kl_backward, p, gradient_items(plan));
        for (int64_t o = 0; o < s.outer; ++o) {
          for (int64_t d = 0; d < s.dim; ++d) {
            Long sum[4] = {}, size = 0;
            for (int64_t i = 0; i < s.inner; ++i) {
              const Long g = *grad.row(o, i), mp = standard ? T(0) : mean_p.row(o, i)[d],
                         vp = standard ? T(0) : log_var_p.row(o, i)[d];
              const Long distance = mean_q.row(o, i)[d] - mp, ratio = std::exp(log_var_q.row(o, i)[d] - vp);
              const Long pull = distance * std::exp(-vp);
              sum[0] += g * pull, sum[1] += g * (ratio - 1) / 2, sum[2] -= g * pull,
                  sum[3] += g * (1 - ratio - distance * pull) / 2;
              size += std::fabs(g) * (ratio + std::fabs(pull) + std::fabs(distance * pull));
            }
            for (int i = 0; i < 4; ++i) CHECK(!(wanted >> i & 1) || near(out[i][o * s.dim + d], sum[i], size));
          }
        }
      }
    }
  });
}

template <class T>
void log_prob_both_ways() {
  forward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> x(s, true, true, gap, 1, -2, 2), mean(s, false, false, 0, 2, -2, 2), log_var(s, true, true, 0, 3, -2, 2);
    for (int given = 0; given < 4; ++given) {
      const bool has_mean = given & 1, has_log_var = given & 2;
      std::vector<T> log_prob(s.outer);
      const RowPlan plan = make_plan<T>(s, {&x, &mean, &log_var});
      const void *means = has_mean ? mean.data.data() : nullptr, *log_vars = has_log_var ? log_var.data.data() : nullptr;
      run(backend::gaussian_log_prob, GaussianLogProb{plan, x.data.data(), means, log_vars, log_prob.data()}, s.outer);
      for (int64_t r = 0; r < s.outer; ++r) {
        Long sum = 0;
        for (int64_t d = 0; d < s.dim; ++d) {
          const Long v = has_log_var ? log_var.row(r)[d] : T(0), distance = x.row(r)[d] - Long(has_mean ? mean.row(r)[d] : T(0));
          sum -= (kLogTwoPi + v + distance * distance * std::exp(-v)) / 2;
        }
        CHECK(near(log_prob[r], sum, sum));
      }
    }
  });
  backward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> x(s, true, true, gap, 1, -2, 2), mean(s, true, false, 0, 2, -2, 2), log_var(s, false, true, 0, 3, -2, 2),
        grad({s.outer, s.inner, 1}, true, true, 0, 5, -1, 1);
    for (const int wanted : {7, 5, 3, 1, 2}) {
      for (int given = 0; given < 4; ++given) {
        const bool has_mean = given & 1, has_log_var = given & 2;
        if ((wanted & 2 && !has_mean) || (wanted & 4 && !has_log_var)) continue;
        const RowPlan plan = make_plan<T>(s, {&x, &mean, &log_var, &grad});
        std::vector<T> out[3];
        GaussianLogProbBackward p{
            plan,
            {x.data.data(), has_mean ? mean.data.data() : nullptr, has_log_var ? log_var.data.data() : nullptr},
            grad.data.data(),
            {}};
        for (int i = 0; i < 3; ++i) {
          out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
          p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
        }
        run(backend::gaussian_log_prob_backward, p, gradient_items(plan));
        for (int64_t o = 0; o < s.outer; ++o) {
          for (int64_t d = 0; d < s.dim; ++d) {
            Long sum[3] = {}, size = 0;
            for (int64_t i = 0; i < s.inner; ++i) {
              const Long g = *grad.row(o, i), v = has_log_var ? log_var.row(o, i)[d] : T(0);
              const Long distance = x.row(o, i)[d] - Long(has_mean ? mean.row(o, i)[d] : T(0)), pull = distance * std::exp(-v);
              sum[0] -= g * pull, sum[1] += g * pull, sum[2] += g * (distance * pull - 1) / 2;
              size += std::fabs(g) * (1 + std::fabs(pull) + std::fabs(distance * pull));
            }
            for (int i = 0; i < 3; ++i) CHECK(!(wanted >> i & 1) || near(out[i][o * s.dim + d], sum[i], size));
          }
        }
      }
    }
  });
}

template <class T>
void merge_both_ways() {
  forward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> mean_q(s, true, true, gap, 1, -2, 2), log_var_q(s, false, false, 0, 2, -2, 2),
        mean_p(s, true, true, 0, 3, -2, 2), log_var_p(s, true, true, gap, 4, -2, 2);
    std::vector<T> mean(s.outer * s.dim), log_var(s.outer * s.dim);
    const RowPlan plan = make_plan<T>(s, {&mean_q, &log_var_q, &mean_p, &log_var_p});
    const GaussianMerge p{plan,
                          {mean_q.data.data(), log_var_q.data.data(), mean_p.data.data(), log_var_p.data.data()},
                          mean.data(),
                          log_var.data()};
    run(backend::gaussian_merge, p, s.outer);
    for (int64_t i = 0; i < s.outer * s.dim; ++i) {
      const int64_t r = i / s.dim, d = i % s.dim;
      const Long a = std::exp(-Long(log_var_q.row(r)[d])), b = std::exp(-Long(log_var_p.row(r)[d]));
      CHECK(near(mean[i], (mean_q.row(r)[d] * a + mean_p.row(r)[d] * b) / (a + b), 2) && near(log_var[i], -std::log(a + b), 2));
    }
  });
  backward_shapes([](const Shape& s, int64_t gap) {
    const Input<T> mean_q(s, true, true, gap, 1, -2, 2), log_var_q(s, false, true, 0, 2, -2, 2),
        mean_p(s, true, false, 0, 3, -2, 2), log_var_p(s, true, true, 0, 4, -2, 2), grad_mean(s, true, true, gap, 5, -1, 1),
        grad_log_var(s, true, true, 0, 6, -1, 1);
    for (const int wanted : kWanted) {
      const RowPlan plan = make_plan<T>(s, {&mean_q, &log_var_q, &mean_p, &log_var_p, &grad_mean, &grad_log_var});
      std::vector<T> out[4];
      GaussianMergeBackward p{plan,
                              {mean_q.data.data(), log_var_q.data.data(), mean_p.data.data(), log_var_p.data.data()},
                              grad_mean.data.data(),
                              grad_log_var.data.data(),
                              {}};
      for (int i = 0; i < 4; ++i) {
        out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
        p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
      }
      run(backend::gaussian_merge_backward, p, gradient_items(plan));
      for (int64_t o = 0; o < s.outer; ++o) {
        for (int64_t d = 0; d < s.dim; ++d) {
          Long sum[4] = {};
          for (int64_t i = 0; i < s.inner; ++i) {
            const Long a = std::exp(-Long(log_var_q.row(o, i)[d])), b = std::exp(-Long(log_var_p.row(o, i)[d])),
                       g = grad_mean.row(o, i)[d];
            const Long h = grad_log_var.row(o, i)[d], wq = a / (a + b), wp = b / (a + b);
            const Long slope = g * (Long(mean_q.row(o, i)[d]) - mean_p.row(o, i)[d]) * wq * wp;
            sum[0] += g * wq, sum[1] += h * wq - slope, sum[2] += g * wp, sum[3] += h * wp + slope;
          }
          for (int i = 0; i < 4; ++i) CHECK(!(wanted >> i & 1) || near(out[i][o * s.dim + d], sum[i], 3 * s.inner));
        }
      }
    }
  });
}

// Returns the noise of one coordinate, computed from csrc/math alone.
Long noise(const NoiseKey& key, int64_t row, int64_t d) {
  const PhiloxWords counter{uint32_t(d / kNoiseGroup * kLanes + d % kLanes), key.first_sample + uint32_t(row % key.samples),
                            key.first_row + uint32_t(row / key.samples), key.stream};
  const Normals<double> n = normals<double>(counter, uint32_t(key.seed), uint32_t(uint64_t(key.seed) >> 32));
  const double four[] = {n.a, n.b, n.c, n.d};
  return four[d % kNoiseGroup / kLanes];
}

template <class T>
void sample_both_ways() {
  const NoiseKey key{-123456789012345, nullptr, 0xFFFFFFFFu, 4000000000u, 17u, 2};
  forward_shapes([&](const Shape& s, int64_t gap) {
    const Input<T> mean(s, true, true, gap, 1, -2, 2), log_var(s, false, false, 0, 2, -2, 2);
    std::vector<T> z(s.outer * s.dim), log_q(s.outer);
    const RowPlan plan = make_plan<T>(s, {&mean, &log_var});
    run(backend::gaussian_sample, GaussianSample{plan, key, mean.data.data(), log_var.data.data(), z.data(), log_q.data()},
        s.outer);
    for (int64_t r = 0; r < s.outer; ++r) {
      Long sum = 0;
      for (int64_t d = 0; d < s.dim; ++d) {
        const Long eps = noise(key, r, d), v = log_var.row(r)[d];
        CHECK(near(z[r * s.dim + d], mean.row(r)[d] + std::exp(v / 2) * eps, 20));
        sum -= (kLogTwoPi + v + eps * eps) / 2;
      }
      CHECK(near(log_q[r], sum, sum));
    }
  });
  backward_shapes([&](const Shape& s, int64_t gap) {
    const Input<T> mean(s, true, false, 0, 1, -2, 2), log_var(s, false, true, gap, 2, -2, 2),
        grad_z(s, true, true, gap, 3, -1, 1), grad_log_q({s.outer, s.inner, 1}, true, true, 0, 4, -1, 1);
    for (int wanted = 1; wanted < 4; ++wanted) {
      RowPlan plan = make_plan<T>(s, {&mean, &log_var, &grad_z, &grad_log_q});
      set_strides(plan, 4, s.inner, 1);  // input 4 is a row's own index
      std::vector<T> out[2];
      GaussianSampleBackward p{plan, key, log_var.data.data(), grad_z.data.data(), grad_log_q.data.data(), {}};
      for (int i = 0; i < 2; ++i) {
        out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
        p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
      }
      run(backend::gaussian_sample_backward, p, gradient_items(plan));
      for (int64_t o = 0; o < s.outer; ++o) {
        for (int64_t d = 0; d < s.dim; ++d) {
          Long sum[2] = {};
          for (int64_t i = 0; i < s.inner; ++i) {
            const Long g = grad_z.row(o, i)[d], slope = std::exp(Long(log_var.row(o, i)[d]) / 2) * noise(key, o * s.inner + i, d);
            sum[0] += g, sum[1] += (g * slope - *grad_log_q.row(o, i)) / 2;
          }
          for (int i = 0; i < 2; ++i) CHECK(!(wanted >> i & 1) || near(out[i][o * s.dim + d], sum[i], 8 * s.inner));
        }
      }
    }
  });
}

}  // namespace

TEST(gaussian_kl) {
  on_every_path([] { kl_forward<float>(), kl_forward<double>(), kl_backward<float>(), kl_backward<double>(); });
}
TEST(gaussian_log_prob) {
  on_every_path([] { log_prob_both_ways<float>(), log_prob_both_ways<double>(); });
}
TEST(gaussian_merge) {
  on_every_path([] { merge_both_ways<float>(), merge_both_ways<double>(); });
}
TEST(gaussian_sample) {
  on_every_path([] { sample_both_ways<float>(), sample_both_ways<double>(); });
}

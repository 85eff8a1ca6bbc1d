// Tests the Bernoulli kernel on every instruction set, for every type of x. The sizes include those at which a full product of
// factors is closed and a new one begins.
#include "geometry.h"

#include "kernels/bernoulli_log_prob.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

template <class T, class X>
void forward() {
  std::vector<int64_t> sizes = kSizes;
  for (const int64_t edge : {32 * 120, 32 * 1000}) sizes.insert(sizes.end(), {edge, edge + 33});
  for (const int64_t dim : sizes) {
    const Shape s{dim > 1000 ? 1 : 4, 1, dim};
    for (const double scale : {0.0, 6.0, 1e4}) {  // at 0 the factors are largest
      const Input<T> logits(s, true, true, dim % 3, 1, -scale, scale);
      const Input<X> x(s, false, false, 0, 2, 0, 1);
      std::vector<T> log_prob(s.outer);
      RowPlan plan = make_plan<T>(s, {&logits});
      set_strides(plan, 1, x.outer_stride, x.inner_stride);
      run(backend::bernoulli_log_prob, BernoulliLogProb{plan, dtype_of<X>(), logits.data.data(), x.data.data(), log_prob.data()},
          s.outer);
      for (int64_t r = 0; r < s.outer; ++r) {
        Long sum = 0, size = 0;
        for (int64_t d = 0; d < dim; ++d) {
          const Long l = logits.row(r)[d];
          sum += Long(x.row(r)[d]) * l - (l > 0 ? l : 0) - std::log1p(std::exp(-std::fabs(l)));
          size += std::fabs(l) + 0.7L;
        }
        CHECK(near(log_prob[r], sum, size, 4));
      }
    }
  }
}

template <class T, class X>
void backward() {
  for (const Shape s :
       {Shape{3, 1, 65}, Shape{2, 5, 17}, Shape{1, 130, 3}, Shape{2, 64, 257}, Shape{1, 1, 1}, Shape{1, 2, 784}}) {
    const Input<T> logits(s, true, true, 1, 1, -6, 6), grad({s.outer, s.inner, 1}, true, true, 0, 3, -1, 1);
    const Input<X> x(s, true, false, 0, 2, 0, 1);
    for (int wanted = 1; wanted < 4; ++wanted) {
      RowPlan plan = make_plan<T>(s, {&logits, nullptr, &grad});
      set_strides(plan, 1, x.outer_stride, x.inner_stride);
      std::vector<T> out[2];
      BernoulliLogProbBackward p{plan, dtype_of<X>(), {logits.data.data(), x.data.data()}, grad.data.data(), {}};
      for (int i = 0; i < 2; ++i) {
        out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
        p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
      }
      run(backend::bernoulli_log_prob_backward, p, gradient_items(plan));
      for (int64_t o = 0; o < s.outer; ++o) {
        for (int64_t d = 0; d < s.dim; ++d) {
          Long sum[2] = {};
          for (int64_t i = 0; i < s.inner; ++i) {
            const Long g = *grad.row(o, i), l = logits.row(o, i)[d];
            sum[0] += g * (Long(x.row(o, i)[d]) - 1 / (1 + std::exp(-l))), sum[1] += g * l;
          }
          CHECK(!(wanted & 1) || near(out[0][o * s.dim + d], sum[0], s.inner));
          CHECK(!(wanted & 2) || near(out[1][o * s.dim + d], sum[1], 6 * s.inner));
        }
      }
    }
  }
}

// Tests that the gradient of the logits may be written over them, as linear_bernoulli_log_prob does.
template <class T>
void backward_in_place() {
  for (const Shape s : {Shape{3, 1, 65}, Shape{5, 1, 784}}) {
    Input<T> logits(s, true, true, 0, 1, -6, 6);
    const Input<T> before = logits, grad({s.outer, s.inner, 1}, true, true, 0, 3, -1, 1), x(s, true, false, 0, 2, 0, 1);
    const RowPlan plan = make_plan<T>(s, {&logits, &x, &grad});
    const BernoulliLogProbBackward p{
        plan, dtype_of<T>(), {logits.data.data(), x.data.data()}, grad.data.data(), {logits.data.data(), nullptr}};
    run(backend::bernoulli_log_prob_backward, p, gradient_items(plan));
    for (int64_t o = 0; o < s.outer; ++o) {
      for (int64_t d = 0; d < s.dim; ++d) {
        const Long exact = Long(*grad.row(o)) * (Long(x.row(o)[d]) - 1 / (1 + std::exp(-Long(before.row(o)[d]))));
        CHECK(near(logits.row(o)[d], exact, 1));
      }
    }
  }
}

}  // namespace

TEST(bernoulli_log_prob) {
  on_every_path(
      [] { forward<float, float>(), forward<double, double>(), forward<float, uint8_t>(), forward<double, uint8_t>(); });
}

TEST(bernoulli_log_prob_backward_in_place) {
  on_every_path([] { backward_in_place<float>(), backward_in_place<double>(); });
}

TEST(bernoulli_log_prob_backward) {
  on_every_path(
      [] { backward<float, float>(), backward<double, double>(), backward<float, uint8_t>(), backward<double, uint8_t>(); });
}

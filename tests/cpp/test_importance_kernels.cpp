// Tests the kernels over importance weights on every instruction set: the bound, its gradient, and the streaming state.
#include "geometry.h"

#include "kernels/importance_bound.h"
#include "kernels/importance_state.h"
#include "math/importance.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

template <class T>
Long log_mean(const T* w, int64_t k) {
  Long top = -std::numeric_limits<Long>::infinity(), sum = 0;
  for (int64_t i = 0; i < k; ++i) top = std::fmax(top, Long(w[i]));
  for (int64_t i = 0; i < k; ++i) sum += std::exp(w[i] - top);
  return top + std::log(sum / k);
}

template <class T>
void bound_both_ways() {
  for (const int64_t k : kSizes) {
    for (const double spread : {1.0, 300.0}) {
      const Shape s{k > 1000 ? 2 : 5, 1, k};
      const Input<T> log_w(s, true, true, k % 3, 1, -90 - spread, -90 + spread), grad({s.outer, 1, 1}, true, true, 0, 2, -1, 1);
      std::vector<T> bound(s.outer), out(s.outer * k);
      run(backend::importance_bound, ImportanceBound{make_plan<T>(s, {&log_w}), log_w.data.data(), bound.data()}, s.outer);
      std::vector<Long> truth(s.outer);
      for (int64_t r = 0; r < s.outer; ++r) {
        truth[r] = log_mean(log_w.row(r), k);
        CHECK(near(bound[r], truth[r], 90 + spread, 8));
      }
      const RowPlan plan = make_plan<T>(s, {&log_w, &grad});
      const ImportanceBoundBackward p{plan, log_w.data.data(), grad.data.data(), out.data()};
      run(backend::importance_bound_backward, p, s.outer);
      for (int64_t i = 0; i < s.outer * k; ++i) {
        const int64_t r = i / k;
        const T* w = log_w.row(r);
        const Long weight = std::exp(w[i % k] - truth[r] - std::log(Long(k)));
        // allows for the rounding of the difference from the largest log weight, but not for that of the bound
        const Long roundings = 8 + std::min<Long>(k, 4096) / 16 + (*std::max_element(w, w + k) - w[i % k]),
                   exact = *grad.row(r) * weight;
        CHECK(std::fabs(out[i] - exact) <= roundings * std::numeric_limits<T>::epsilon() * std::fabs(exact) + 1e-37L);
      }
    }
  }
}

template <class T>
void special_bounds() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const int64_t k : {1, 3, 16, 33}) {
    for (const T background : {-inf, T(-5)}) {
      for (const T special : {-inf, T(2), inf, nan}) {
        for (int64_t at = 0; at < k; ++at) {
          std::vector<T> log_w(k, background), bound(1);
          log_w[at] = special;
          const Shape s{1, 1, k};
          Input<T> input(s, true, true, 0, 1, 0, 1);
          input.data = log_w;
          run(backend::importance_bound, ImportanceBound{make_plan<T>(s, {&input}), input.data.data(), bound.data()}, 1);
          if (std::isnan(special)) {
            CHECK(std::isnan(bound[0]));
          } else if (special == inf) {
            CHECK(bound[0] == inf);
          } else if (special == -inf && (background == -inf || k == 1)) {
            CHECK(bound[0] == -inf);
          } else {
            CHECK(near(bound[0], log_mean(log_w.data(), k), 5));
          }
        }
      }
    }
  }
}

template <class T>
void special_gradients() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const int64_t k : {2, 16, 33}) {
    const auto gradient = [&](std::vector<T> log_w, T grad) {
      std::vector<T> out(k, T(-7));
      const Shape s{1, 1, k};
      Input<T> input(s, true, true, 0, 1, 0, 1), upstream({1, 1, 1}, true, true, 0, 1, 0, 1);
      input.data = log_w, upstream.data = {grad};
      const RowPlan plan = make_plan<T>(s, {&input, &upstream});
      run(backend::importance_bound_backward, ImportanceBoundBackward{plan, input.data.data(), upstream.data.data(), out.data()},
          1);
      return out;
    };
    for (const T grad : {T(0), T(2), inf, nan}) CHECK(gradient(std::vector<T>(k, -inf), grad) == std::vector<T>(k, T(0)));
    std::vector<T> log_w(k, T(-5)), expected(k, T(0));
    log_w[0] = log_w[k - 1] = inf, expected[0] = expected[k - 1] = T(1);
    CHECK(gradient(log_w, T(2)) == expected);
    log_w[1] = nan;
    for (const T value : gradient(log_w, T(2))) CHECK(std::isnan(value));
    log_w.assign(k, -inf), log_w[1] = nan;
    for (const T value : gradient(log_w, T(2))) CHECK(std::isnan(value));
  }
}

template <class T>
void states() {
  for (const int64_t k : kSizes) {
    const Shape s{k > 1000 ? 2 : 5, 1, k};
    const Input<T> log_w(s, true, true, k % 3, 1, -120, -60);
    std::vector<double> half(s.outer * kStateSize), whole(s.outer * kStateSize), twice(s.outer * kStateSize);
    RowPlan plan = make_plan<T>(s, {&log_w});
    run(backend::importance_state, ImportanceState{plan, log_w.data.data(), nullptr, whole.data()}, s.outer);
    // the state of the first k / 2 weights, to which the others are then added
    RowPlan first = plan, second = plan;
    first.dim = k / 2, second.dim = k - k / 2;
    set_strides(second, 1, kStateSize, 0);
    run(backend::importance_state, ImportanceState{first, log_w.data.data(), nullptr, half.data()}, s.outer);
    run(backend::importance_state, ImportanceState{second, log_w.data.data() + k / 2, half.data(), twice.data()}, s.outer);
    for (int64_t r = 0; r < s.outer; ++r) {
      Long top = -1e30L, sum = 0, squares = 0, logs = 0;
      for (int64_t i = 0; i < k; ++i) top = std::fmax(top, Long(log_w.row(r)[i])), logs += log_w.row(r)[i];
      for (int64_t i = 0; i < k; ++i) sum += std::exp(log_w.row(r)[i] - top), squares += std::exp(2 * (log_w.row(r)[i] - top));
      for (const double* state : {whole.data() + r * kStateSize, twice.data() + r * kStateSize}) {
        CHECK(state[0] == double(top) && near(state[1], sum, sum) && near(state[2], squares, squares));
        CHECK(near(state[3], logs, logs) && state[4] == double(k));
      }
    }
  }
}

}  // namespace

TEST(importance_bound) {
  on_every_path([] { bound_both_ways<float>(), bound_both_ways<double>(); });
}
TEST(importance_bound_of_special_values) {
  on_every_path([] { special_bounds<float>(), special_bounds<double>(); });
}
TEST(importance_bound_gradient_of_special_values) {
  on_every_path([] { special_gradients<float>(), special_gradients<double>(); });
}
TEST(importance_state) {
  on_every_path([] { states<float>(), states<double>(); });
}

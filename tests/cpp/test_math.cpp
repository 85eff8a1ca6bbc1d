// Tests the accuracy of csrc/math against long double (double, for float), over dense sweeps and at the limits. The limits on
// errors below are the claims of the header comments.
#include "check.h"

#include <cstdint>
#include <vector>

#include "math/activation.h"
#include "math/bernoulli.h"
#include "math/categorical.h"
#include "math/gaussian.h"

using namespace dgmfast;
using check::ulps;
using check::Worst;

namespace {

constexpr float kInfinityF = std::numeric_limits<float>::infinity();

template <class T>
struct Truth;  // the next higher precision
template <>
struct Truth<float> {
  using type = double;
};
template <>
struct Truth<double> {
  using type = long double;
};

// Applies f to x in a loop like those of the kernels, so that the vectorised code is what is measured.
template <class T, class F>
std::vector<T> vectorised(const std::vector<T>& x, F f) {
  std::vector<T> y(x.size());
  const T* in = x.data();
  T* out = y.data();
  const int64_t n = int64_t(x.size());
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = f(in[i]);
  return y;
}

template <class T, class F, class G>
void sweep(const char* what, double limit, const std::vector<T>& x, F f, G exact) {
  using Wide = typename Truth<T>::type;
  Worst worst{what, limit};
  const std::vector<T> y = vectorised(x, f);
  for (size_t i = 0; i < x.size(); ++i) worst.add(ulps(y[i], static_cast<long double>(exact(Wide(x[i])))), x[i]);
}

template <class T>
std::vector<T> linear(T first, T last, int count) {
  std::vector<T> x(count);
  for (int i = 0; i < count; ++i) x[i] = first + (last - first) * (T(i) / T(count - 1));
  return x;
}

// Returns positive numbers of every exponent between first and last.
template <class T>
std::vector<T> geometric(T first, T last, int count) {
  std::vector<T> x(count);
  const double low = std::log2(double(first)), high = std::log2(double(last));
  for (int i = 0; i < count; ++i) {
    x[i] = T(std::fmin(double(last), std::fmax(double(first), std::exp2(low + (high - low) * i / (count - 1)))));
  }
  return x;
}

constexpr int kCount = 1000003;

template <class T>
std::vector<T> exp_arguments() {
  // where e^x is normal; smaller results are flushed to 0
  std::vector<T> x =
      linear(T(std::log(double(std::numeric_limits<T>::min()) * 4)), T(std::log(double(std::numeric_limits<T>::max()))), kCount);
  for (const T sign : {T(-1), T(1)}) {
    for (const T tiny : geometric(T(1e-30), T(1), 100003)) x.push_back(sign * tiny);
  }
  // around the half-integers of x / log 2, where the reduction moves to the next integer
  for (int n = -120; n < 120; ++n) {
    for (int d = -8; d <= 8; ++d) x.push_back(T((n + 0.5) * kLn2) * (T(1) + T(d) * std::numeric_limits<T>::epsilon()));
  }
  return x;
}

template <class T>
void exp_accuracy(const char* exp_name, const char* nonpositive_name) {
  sweep(exp_name, 1.5, exp_arguments<T>(), [](T x) { return dgmfast::exp(x); }, [](auto x) { return std::exp(x); });
  std::vector<T> nonpositive;
  for (const T x : exp_arguments<T>()) {
    if (x <= T(1e-3)) nonpositive.push_back(x);  // the rounding of a difference may leave it just above 0
  }
  sweep(nonpositive_name, 1.5, nonpositive, [](T x) { return exp_nonpositive(x); }, [](auto x) { return std::exp(x); });
}

template <class T>
void expm1_accuracy(const char* what) {
  std::vector<T> x = linear(T(-60), T(0), kCount);
  for (const T tiny : geometric(std::numeric_limits<T>::min() * 4, T(60), kCount)) x.push_back(-tiny);
  sweep(what, 2.0, x, [](T v) { return expm1_nonpositive(v); }, [](auto v) { return std::expm1(v); });
}

// Tests values against their definitions, and derivatives of the exact outputs against the exact derivatives.
template <class T>
void activation_accuracy(const char* tanh_name, const char* softplus_name, const char* elu_name, const char* slope_name) {
  std::vector<T> x = linear(T(-30), T(30), kCount);
  for (const T sign : {T(-1), T(1)}) {
    for (const T tiny : geometric(T(1e-30), T(1), 100003)) x.push_back(sign * tiny);
  }
  sweep(tanh_name, 1.5, x, [](T v) { return Tanh::value(v); }, [](auto v) { return std::tanh(v); });
  sweep(
      softplus_name, 4.0, x, [](T v) { return Softplus::value(v); },
      [](auto v) { return v > 20 ? v : (v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v))); });
  sweep(elu_name, 2.0, x, [](T v) { return Elu::value(v); }, [](auto v) { return v > 0 ? v : std::expm1(v); });
  sweep(
      slope_name, 3.0, geometric(T(1e-30), T(30), kCount), [](T out) { return Softplus::gradient(T(1), out); },
      [](auto out) { return out > 20 ? decltype(out)(1) : -std::expm1(-out); });
}

template <class T>
void activation_limits() {
  const T inf = infinity<T>(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto at = [](auto f, T x) { return vectorised(std::vector<T>(17, x), f)[16]; };
  const auto check = [&](auto f, T low, T high) {
    const auto value = [](T v) { return decltype(f)::value(v); };
    CHECK(at(value, -inf) == low && at(value, inf) == high && at(value, T(0)) == decltype(f)::value(T(0)));
    CHECK(std::isnan(at(value, nan)) && std::isnan(decltype(f)::value(nan)));
  };
  check(Identity(), -inf, inf), check(Relu(), T(0), inf), check(LeakyRelu(), -inf, inf);
  check(Tanh(), T(-1), T(1)), check(Softplus(), T(0), inf), check(Elu(), T(-1), inf);
  CHECK(at([](T v) { return expm1_nonpositive(v); }, -inf) == T(-1) && std::isnan(expm1_nonpositive(nan)));
  CHECK(Relu::gradient(T(3), T(0)) == T(0) && Relu::gradient(inf, T(0)) == T(0) && Relu::gradient(T(3), T(2)) == T(3));
  CHECK(LeakyRelu::gradient(T(3), T(-1)) == T(3) * T(0.1) && LeakyRelu::gradient(T(3), T(1)) == T(3));
  CHECK(Tanh::gradient(T(3), T(1)) == T(0) && Elu::gradient(T(3), T(-1)) == T(0) && Elu::gradient(T(3), T(0)) == T(3));
  CHECK(Softplus::gradient(T(3), T(0)) == T(0) && Softplus::gradient(T(3), inf) == T(3) && Identity::gradient(T(3), nan) == T(3));
}

template <class T>
void label_terms(const char* name) {
  Worst worst{name, 4};
  const T inf = infinity<T>();
  CHECK(label_term(T(0), -inf, T(5)) == T(0) && label_term(T(0), T(-1e4), T(5)) == T(0));
  CHECK(std::isnan(label_term(T(0), -inf, inf)) && label_term(T(0.5), T(-1), T(3)) == T(2));
  const LabelGradients<T> none = label_gradients(-inf, T(5), T(-3));
  CHECK(none.logit == T(0) && none.value == T(0));
  for (const T log_q : linear(T(-60), T(0), 1001)) {
    const LabelGradients<T> g = label_gradients(log_q, T(2), T(-1));
    const long double q = std::exp(static_cast<long double>(log_q)), exact = q * (3.0L - log_q);
    worst.add(ulps(g.value, q), log_q), worst.add(ulps(g.logit, exact), log_q);
  }
}

template <class T>
void log_accuracy(const char* what) {
  std::vector<T> x = geometric(std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), kCount);
  for (const T near : linear(T(0.5), T(2), kCount)) x.push_back(near);
  for (const T tiny : geometric(std::numeric_limits<T>::epsilon(), T(0.4), 100003)) {
    x.push_back(T(1) + tiny);
    x.push_back(T(1) - tiny);
  }
  sweep(what, 1.5, x, [](T v) { return log_positive(v); }, [](auto v) { return std::log(v); });
}

template <class T>
void log1p_accuracy(const char* unit_name, const char* nonnegative_name) {
  std::vector<T> x = linear(T(0), T(1), kCount);
  for (const T tiny : geometric(std::numeric_limits<T>::min(), T(1), kCount)) x.push_back(tiny);
  sweep(unit_name, 2.0, x, [](T v) { return log1p_unit(v); }, [](auto v) { return std::log1p(v); });
  for (const T large : geometric(T(1), std::numeric_limits<T>::max() / 4, kCount)) x.push_back(large);
  sweep(nonnegative_name, 2.0, x, [](T v) { return log1p_nonnegative(v); }, [](auto v) { return std::log1p(v); });
}

template <class T>
void sigmoid_accuracy(const char* what) {
  const T edge = T(0.99) * T(-std::log(double(std::numeric_limits<T>::min())));
  sweep(
      what, 4.0, linear(-edge, edge, kCount), [](T v) { return sigmoid(v); },
      [](auto v) { return decltype(v)(1) / (decltype(v)(1) + std::exp(-v)); });
}

template <class T>
void limits() {
  const T inf = infinity<T>(), nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(std::isinf(inf) && inf > 0);
  const auto e = [](T x) { return vectorised(std::vector<T>(17, x), [](T v) { return dgmfast::exp(v); })[16]; };
  const auto n = [](T x) { return vectorised(std::vector<T>(17, x), [](T v) { return exp_nonpositive(v); })[16]; };
  const auto s = [](T x) { return vectorised(std::vector<T>(17, x), [](T v) { return sigmoid(v); })[16]; };
  CHECK(e(T(0)) == T(1) && e(T(-0.0)) == T(1));
  CHECK(e(inf) == inf && e(-inf) == T(0) && std::isnan(e(nan)) && std::isnan(e(-nan)));
  CHECK(e(T(1e4)) == inf && e(T(-1e4)) == T(0));
  CHECK(e(std::numeric_limits<T>::max()) == inf && e(std::numeric_limits<T>::lowest()) == T(0));
  const T log_max = std::log(std::numeric_limits<T>::max()), log_min = std::log(std::numeric_limits<T>::min());
  CHECK(std::isfinite(e(log_max * (T(1) - 2 * std::numeric_limits<T>::epsilon()))));
  CHECK(e(log_max * (T(1) + 4 * std::numeric_limits<T>::epsilon())) == inf);
  // results below the normal numbers are not negative, and at most slightly above the smallest normal number
  for (T x = log_min; x > 2 * log_min; x += log_min / T(1000)) {
    const T value = e(x);
    CHECK(value >= T(0) && value <= T(1.001) * std::numeric_limits<T>::min());
    CHECK(n(x) >= T(0) && n(x) <= T(1.001) * std::numeric_limits<T>::min());
  }
  CHECK(n(T(0)) == T(1) && n(-inf) == T(0) && n(T(-1e4)) == T(0) && n(std::numeric_limits<T>::lowest()) == T(0));
  CHECK(std::isnan(n(nan)) && std::isnan(n(-nan)));
  for (T x = log_min + T(3); x < log_max; x += T(0.37)) CHECK(e(x) > T(0) && std::isfinite(e(x)));
  CHECK(s(T(0)) == T(0.5) && s(inf) == T(1) && s(-inf) == T(0) && std::isnan(s(nan)));
  CHECK(s(T(1e4)) == T(1) && s(T(-1e4)) == T(0) && s(T(100)) == T(1));
  CHECK(log_positive(T(1)) == T(0) && log1p_unit(T(0)) == T(0));
  CHECK(std::isnan(log1p_unit(nan)));
  CHECK(ulps(log1p_unit(T(1)), std::log(2.0L)) <= 1.0);
}

template <class T>
void monotone() {
  T before = T(0), exp_before = T(0);
  for (const T x : linear(T(-20), T(20), 200003)) {
    const T value = sigmoid(x), e = dgmfast::exp(x);
    // rising, up to rounding errors of the two neighbours
    CHECK(value >= before * (T(1) - 4 * std::numeric_limits<T>::epsilon()));
    CHECK(e >= exp_before * (T(1) - 4 * std::numeric_limits<T>::epsilon()));
    CHECK(value >= T(0) && value <= T(1));
    before = value, exp_before = e;
  }
}

template <class T>
void bits() {
  T e, m;
  for (const T x : geometric(std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), 20011)) {
    split_exponent(x, e, m);
    CHECK(m >= T(0.70710678) && m < T(1.41421357) && e == std::rint(e));
    CHECK(std::ldexp(static_cast<long double>(m), int(e)) == static_cast<long double>(x));
  }
  CHECK(maximum(T(1), T(2)) == T(2) && minimum(T(1), T(2)) == T(1) && magnitude(T(-3)) == T(3) && square_root(T(9)) == T(3));
}

template <class T>
void gaussian_terms(const char* const (&names)[6]) {
  // The unit is a rounding of 1 plus the sizes of the terms that are added.
  Worst errors[] = {{names[0], 4}, {names[1], 2}, {names[2], 2}, {names[3], 2}, {names[4], 2}, {names[5], 2}};
  const std::vector<T> values = {T(-2.5), T(-1), T(0), T(0.3), T(4)};
  for (const T mean_q : values)
    for (const T log_var_q : values)
      for (const T mean_p : values)
        for (const T log_var_p : values) {
          const long double mq = mean_q, vq = log_var_q, mp = mean_p, vp = log_var_p;
          const auto check = [&](int which, T got, long double exact, long double size) {
            errors[which].add(double(std::fabs(got - exact) / (std::numeric_limits<T>::epsilon() * (1 + std::fabs(size)))), got);
          };
          const long double ratio = std::exp(vq - vp), pull = (mq - mp) * std::exp(-vp), square = (mq - mp) * pull;
          check(0, twice_kl(mean_q, log_var_q, mean_p, log_var_p), vp - vq + ratio + square - 1, ratio + square);
          check(1, twice_kl_standard(mean_q, log_var_q), std::exp(vq) + mq * mq - 1 - vq, std::exp(vq) + mq * mq);
          const KlGradients<T> kl = kl_gradients(mean_q, log_var_q, mean_p, log_var_p);
          check(2, kl.mean_q, pull, pull), check(2, kl.mean_p, -pull, pull), check(2, kl.log_var_q, (ratio - 1) / 2, ratio);
          check(2, kl.log_var_p, (1 - ratio - square) / 2, ratio + square);
          check(3, deviance(mean_q, mean_p, log_var_p), vp + square, square);
          const LogProbGradients<T> log_prob = log_prob_gradients(mean_q, mean_p, log_var_p);
          check(3, log_prob.x, -pull, pull), check(3, log_prob.mean, pull, pull);
          check(3, log_prob.log_var, (square - 1) / 2, square);
          const long double precision_q = std::exp(-vq), precision_p = std::exp(-vp), sum = precision_q + precision_p;
          const Merged<T> merged = merge(mean_q, log_var_q, mean_p, log_var_p);
          check(4, merged.mean, (mq * precision_q + mp * precision_p) / sum, 4), check(4, merged.log_var, -std::log(sum), 4);
          const KlGradients<T> g = merge_gradients(mean_q, log_var_q, mean_p, log_var_p, T(2), T(3));
          const long double wq = precision_q / sum, wp = precision_p / sum, slope = 2 * (mq - mp) * wq * wp;
          check(5, g.mean_q, 2 * wq, 2), check(5, g.mean_p, 2 * wp, 2);
          check(5, g.log_var_q, 3 * wq - slope, 10), check(5, g.log_var_p, 3 * wp + slope, 10);
        }
}

template <class T>
void bernoulli_terms(const char* name) {
  Worst worst{name, 2};  // in roundings of 1 + |logit|
  for (const T logit : linear(T(-40), T(40), 4001)) {
    for (const T x : {T(0), T(0.25), T(1)}) {
      const long double l = logit;
      const long double exact = x * l - (l > 0 ? l + std::log1p(std::exp(-l)) : std::log1p(std::exp(l)));
      const long double got = bernoulli_linear(logit, x) - std::log1p(static_cast<long double>(softplus_product(T(0), logit)));
      worst.add(double(std::fabs(got - exact) / (std::numeric_limits<T>::epsilon() * (1 + std::fabs(l)))), l);
    }
    CHECK(softplus_product(T(0), logit) >= T(0) && softplus_product(T(0), logit) <= T(1));
  }
  T largest = T(0);
  for (int i = 0; i < kFactors<T>; ++i) largest = softplus_product(largest, T(0));
  const auto exactly = [](T got, long double exact, double roundings) {
    return std::fabs(got - exact) <= roundings * std::numeric_limits<T>::epsilon() * exact;
  };
  CHECK(std::isfinite(largest) && exactly(log1p_nonnegative(largest), kFactors<T> * std::log(2.0L), 2));
  // factors that round to 1: their product still has all its digits
  for (const T logit : {T(10), T(17), T(20), T(40)}) {
    T excess = T(0);
    for (int i = 0; i < kFactors<T>; ++i) excess = softplus_product(excess, logit);
    const long double exact = kFactors<T> * std::log1p(std::exp(-static_cast<long double>(logit)));
    CHECK(exactly(log1p_nonnegative(excess), exact, kFactors<T>));
  }
}

}  // namespace

TEST(exp_is_accurate) {
  exp_accuracy<float>("exp<float>", "exp_nonpositive<float>");
  exp_accuracy<double>("exp<double>", "exp_nonpositive<double>");
}
TEST(expm1_is_accurate) {
  expm1_accuracy<float>("expm1_nonpositive<float>"), expm1_accuracy<double>("expm1_nonpositive<double>");
}
TEST(activations_are_accurate) {
  activation_accuracy<float>("tanh<float>", "softplus<float>", "elu<float>", "softplus_gradient<float>");
  activation_accuracy<double>("tanh<double>", "softplus<double>", "elu<double>", "softplus_gradient<double>");
}
TEST(activations_at_their_limits) { activation_limits<float>(), activation_limits<double>(); }
TEST(label_formulas) { label_terms<float>("label_gradients<float>"), label_terms<double>("label_gradients<double>"); }
TEST(log_positive_is_accurate) { log_accuracy<float>("log_positive<float>"), log_accuracy<double>("log_positive<double>"); }
TEST(log1p_unit_is_accurate) {
  log1p_accuracy<float>("log1p_unit<float>", "log1p_nonnegative<float>");
  log1p_accuracy<double>("log1p_unit<double>", "log1p_nonnegative<double>");
}
TEST(sigmoid_is_accurate) { sigmoid_accuracy<float>("sigmoid<float>"), sigmoid_accuracy<double>("sigmoid<double>"); }
TEST(limits_are_exact) { limits<float>(), limits<double>(); }
TEST(functions_rise) { monotone<float>(), monotone<double>(); }
TEST(exponents_split_exactly) { bits<float>(), bits<double>(); }
TEST(gaussian_formulas) {
  gaussian_terms<float>({"twice_kl<float>", "twice_kl_standard<float>", "kl_gradients<float>", "deviance<float>", "merge<float>",
                         "merge_gradients<float>"});
  gaussian_terms<double>({"twice_kl<double>", "twice_kl_standard<double>", "kl_gradients<double>", "deviance<double>",
                          "merge<double>", "merge_gradients<double>"});
}
TEST(bernoulli_formulas) {
  bernoulli_terms<float>("softplus_product<float>"), bernoulli_terms<double>("softplus_product<double>");
}
TEST(infinities) { CHECK(infinity<float>() == kInfinityF); }

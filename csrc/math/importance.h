// Sums of importance weights that are given by their logarithms. The sums are kept relative to the largest weight, so that
// nothing overflows.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// Returns e^{a - top} for a <= top, and 1 where both are the same infinity.
template <class T>
DGMFAST_HOST_DEVICE T relative_weight(T a, T top) {
  return a == top ? T(1) : exp_nonpositive(a - top);
}

// An online log-sum-exp: the sum of the weights is e^top * sum.
template <class T>
struct LogSum {
  T top = -infinity<T>(), sum = T(0);

  // Adds one weight, given by its logarithm.
  DGMFAST_HOST_DEVICE void add(T log_w) { merge({log_w, log_w == -infinity<T>() ? T(0) : T(1)}); }

  // Adds the weights of another sum.
  DGMFAST_HOST_DEVICE void merge(LogSum other) {
    const T larger = other.top > top ? other.top : top;  // NaN is never the larger one, but makes the sum below NaN
    sum = sum * relative_weight(top, larger) + other.sum * relative_weight(other.top, larger);
    top = larger;
  }
};

// Sufficient statistics of a set of weights. The bound, L_1, the effective sample size and the standard error follow from them.
// `sum` and `sum_squares` are relative to e^top and its square.
struct WeightState {
  double top = -infinity<double>(), sum = 0, sum_squares = 0, sum_logs = 0, count = 0;

  // Adds the weights of another state.
  DGMFAST_HOST_DEVICE void merge(const WeightState& other) {
    const double larger = other.top > top ? other.top : top;
    const double mine = relative_weight(top, larger), theirs = relative_weight(other.top, larger);
    sum = sum * mine + other.sum * theirs;
    sum_squares = sum_squares * mine * mine + other.sum_squares * theirs * theirs;
    sum_logs += other.sum_logs;
    count += other.count;
    top = larger;
  }

  // Adds one weight, given by its logarithm.
  DGMFAST_HOST_DEVICE void add(double log_w) {
    merge({log_w, log_w == -infinity<double>() ? 0.0 : 1.0, log_w == -infinity<double>() ? 0.0 : 1.0, log_w, 1.0});
  }
};

constexpr int kStateSize = 5;  // numbers of a state in memory: top, sum, sum of squares, sum of logs, count

// Read and write a state as kStateSize numbers.
DGMFAST_HOST_DEVICE WeightState read_state(const double* p) { return {p[0], p[1], p[2], p[3], p[4]}; }
DGMFAST_HOST_DEVICE void write_state(double* p, const WeightState& s) {
  p[0] = s.top;
  p[1] = s.sum;
  p[2] = s.sum_squares;
  p[3] = s.sum_logs;
  p[4] = s.count;
}

}  // namespace
}  // namespace dgmfast

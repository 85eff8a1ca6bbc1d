// Diagonal Gaussians in terms of (mean, log-variance), one dimension at a time.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;

// log_var_p - log_var_q + e^{log_var_q - log_var_p} + (mean_q - mean_p)^2 e^{-log_var_p} - 1: twice the KL divergence.
template <class T>
DGMFAST_HOST_DEVICE T twice_kl(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const T difference = log_var_q - log_var_p, distance = mean_q - mean_p;
  return (exp(difference) - T(1) - difference) + distance * distance * exp(-log_var_p);
}

template <class T>
DGMFAST_HOST_DEVICE T twice_kl_standard(T mean_q, T log_var_q) {  // p = N(0, 1)
  return (exp(log_var_q) - T(1) - log_var_q) + mean_q * mean_q;
}

template <class T>
struct KlGradients {
  T mean_q, log_var_q, mean_p, log_var_p;
};

template <class T>
DGMFAST_HOST_DEVICE KlGradients<T> kl_gradients(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const T precision = exp(-log_var_p), distance = mean_q - mean_p;
  const T ratio = exp(log_var_q - log_var_p) - T(1);
  const T pull = distance * precision;
  return {pull, T(0.5) * ratio, -pull, T(-0.5) * (ratio + distance * pull)};
}

// log_var + (x - mean)^2 e^{-log_var}: minus twice the log-density, without its log 2 pi.
template <class T>
DGMFAST_HOST_DEVICE T deviance(T x, T mean, T log_var) {
  const T distance = x - mean;
  return log_var + distance * distance * exp(-log_var);
}

template <class T>
struct LogProbGradients {
  T x, mean, log_var;
};

template <class T>
DGMFAST_HOST_DEVICE LogProbGradients<T> log_prob_gradients(T x, T mean, T log_var) {
  const T distance = x - mean;
  const T pull = distance * exp(-log_var);
  return {-pull, pull, T(0.5) * (distance * pull - T(1))};
}

// The product of two Gaussian densities: precisions add (thesis eq. 5.4, read as a variance).
template <class T>
struct Merged {
  T mean, log_var;
};

// Each density's share of the precision. `odds` is the smaller share over the larger.
template <class T>
struct PrecisionShares {
  T q, p, odds;
};

template <class T>
DGMFAST_HOST_DEVICE PrecisionShares<T> precision_shares(T log_var_q, T log_var_p) {
  const T difference = log_var_p - log_var_q;
  const T odds = exp_nonpositive(-magnitude(difference));
  const T larger = T(1) / (T(1) + odds), smaller = odds * larger;
  return {difference > T(0) ? larger : smaller, difference > T(0) ? smaller : larger, odds};
}

template <class T>
DGMFAST_HOST_DEVICE Merged<T> merge(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const PrecisionShares<T> share = precision_shares(log_var_q, log_var_p);
  // of two equal variances the odds are 1, but NaN where both are infinite
  const T gain = log_var_q == log_var_p ? T(kLn2) : log1p_unit(share.odds);
  return {mean_q * share.q + mean_p * share.p, minimum(log_var_q, log_var_p) - gain};
}

template <class T>
DGMFAST_HOST_DEVICE KlGradients<T> merge_gradients(T mean_q, T log_var_q, T mean_p, T log_var_p, T grad_mean, T grad_log_var) {
  const PrecisionShares<T> share = precision_shares(log_var_q, log_var_p);
  const T slope = grad_mean * (mean_q - mean_p) * share.q * share.p;
  return {grad_mean * share.q, grad_log_var * share.q - slope, grad_mean * share.p, grad_log_var * share.p + slope};
}

}  // namespace
}  // namespace dgmfast

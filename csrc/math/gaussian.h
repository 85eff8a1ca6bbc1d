// Formulas for diagonal Gaussians, one dimension at a time. A Gaussian is given by its mean and its log-variance.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;

// Returns twice the KL divergence of q from p:
// log_var_p - log_var_q + e^{log_var_q - log_var_p} + (mean_q - mean_p)^2 e^{-log_var_p} - 1.
template <class T>
DGMFAST_HOST_DEVICE T twice_kl(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const T difference = log_var_q - log_var_p, distance = mean_q - mean_p;
  return (exp(difference) - T(1) - difference) + distance * distance * exp(-log_var_p);
}

// Returns twice the KL divergence of q from p = N(0, 1).
template <class T>
DGMFAST_HOST_DEVICE T twice_kl_standard(T mean_q, T log_var_q) {
  return (exp(log_var_q) - T(1) - log_var_q) + mean_q * mean_q;
}

// Derivatives with respect to the parameters of q and p.
template <class T>
struct KlGradients {
  T mean_q, log_var_q, mean_p, log_var_p;
};

// Returns the derivatives of the KL divergence (not of twice it) with respect to its four arguments.
template <class T>
DGMFAST_HOST_DEVICE KlGradients<T> kl_gradients(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const T precision = exp(-log_var_p), distance = mean_q - mean_p;
  const T ratio = exp(log_var_q - log_var_p) - T(1);
  const T pull = distance * precision;
  return {pull, T(0.5) * ratio, -pull, T(-0.5) * (ratio + distance * pull)};
}

// Returns log_var + (x - mean)^2 e^{-log_var}, which is minus twice the log-density of x without its term log(2 pi).
template <class T>
DGMFAST_HOST_DEVICE T deviance(T x, T mean, T log_var) {
  const T distance = x - mean;
  return log_var + distance * distance * exp(-log_var);
}

template <class T>
struct LogProbGradients {
  T x, mean, log_var;
};

// Returns the derivatives of the log-density of x with respect to x, mean and log_var.
template <class T>
DGMFAST_HOST_DEVICE LogProbGradients<T> log_prob_gradients(T x, T mean, T log_var) {
  const T distance = x - mean;
  const T pull = distance * exp(-log_var);
  return {-pull, pull, T(0.5) * (distance * pull - T(1))};
}

// The normalised product of two Gaussian densities: their precisions add (thesis eq. 5.4, its σ read as a variance).
template <class T>
struct Merged {
  T mean, log_var;
};

// Each density's share of the summed precision. `odds` is the smaller share divided by the larger one.
template <class T>
struct PrecisionShares {
  T q, p, odds;
};

// Computes the shares from the two log-variances.
template <class T>
DGMFAST_HOST_DEVICE PrecisionShares<T> precision_shares(T log_var_q, T log_var_p) {
  const T difference = log_var_p - log_var_q;
  const T odds = exp_nonpositive(-magnitude(difference));
  const T larger = T(1) / (T(1) + odds), smaller = odds * larger;
  return {difference > T(0) ? larger : smaller, difference > T(0) ? smaller : larger, odds};
}

// Returns the mean and log-variance of the product of q and p.
template <class T>
DGMFAST_HOST_DEVICE Merged<T> merge(T mean_q, T log_var_q, T mean_p, T log_var_p) {
  const PrecisionShares<T> share = precision_shares(log_var_q, log_var_p);
  // for equal variances the gain is log 2; computing it from the odds would give NaN where both are infinite
  const T gain = log_var_q == log_var_p ? T(kLn2) : log1p_unit(share.odds);
  return {mean_q * share.q + mean_p * share.p, minimum(log_var_q, log_var_p) - gain};
}

// Returns the gradients with respect to the four arguments of `merge`, given the gradients with respect to the merged mean and
// log-variance.
template <class T>
DGMFAST_HOST_DEVICE KlGradients<T> merge_gradients(T mean_q, T log_var_q, T mean_p, T log_var_p, T grad_mean, T grad_log_var) {
  const PrecisionShares<T> share = precision_shares(log_var_q, log_var_p);
  const T slope = grad_mean * (mean_q - mean_p) * share.q * share.p;
  return {grad_mean * share.q, grad_log_var * share.q - slope, grad_mean * share.p, grad_log_var * share.p + slope};
}

}  // namespace
}  // namespace dgmfast

// Bernoulli variables in terms of logits.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// log p(x) = linear part - log(softplus factor): x l - max(l, 0) - log(1 + e^{-|l|}). The factors lie in (1, 2], so that many
// can be multiplied before one logarithm is due.
template <class T>
DGMFAST_FN T bernoulli_linear(T logit, T x) {
  return x * logit - maximum(logit, T(0));
}

template <class T>
DGMFAST_FN T softplus_factor(T logit) {
  return T(1) + exp_nonpositive(-magnitude(logit));
}

template <class T>
constexpr int kFactors = 120;  // factors whose product cannot overflow: 2^120 < 3.4e38
template <>
constexpr int kFactors<double> = 1000;

}  // namespace
}  // namespace dgmfast

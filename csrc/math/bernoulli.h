// Bernoulli variables in terms of logits.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// log p(x) = x l - max(l, 0) - log(1 + e^{-|l|}). The factors 1 + e^{-|l|} lie in (1, 2], so that many can be multiplied before
// one logarithm is due. What is kept of a product is its excess over 1, which has all its digits where the logits are large.
template <class T>
DGMFAST_HOST_DEVICE T bernoulli_linear(T logit, T x) {
  return x * logit - maximum(logit, T(0));
}

// The excess of a product, times the factor of one more logit.
template <class T>
DGMFAST_HOST_DEVICE T softplus_product(T excess, T logit) {
  const T e = exp_nonpositive(-magnitude(logit));
  return excess + (e + excess * e);
}

template <class T>
constexpr int kFactors = 120;  // factors whose product cannot overflow: 2^120 < 3.4e38
template <>
constexpr int kFactors<double> = 1000;

}  // namespace
}  // namespace dgmfast

// Terms of the log-likelihood of Bernoulli variables, as functions of their logits.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// log p(x) = x l - max(l, 0) - log(1 + e^{-|l|}) for a logit l. The factors 1 + e^{-|l|} lie in (1, 2], so many of them can be
// multiplied before one logarithm is taken. A product is stored as its excess over 1, which keeps full relative precision when
// the logits are large.
//
// bernoulli_linear returns x l - max(l, 0), the part of log p(x) that needs no logarithm.
template <class T>
DGMFAST_HOST_DEVICE T bernoulli_linear(T logit, T x) {
  return x * logit - maximum(logit, T(0));
}

// Multiplies a product, stored as its excess over 1, by the factor of one more logit. Returns the new excess.
template <class T>
DGMFAST_HOST_DEVICE T softplus_product(T excess, T logit) {
  const T e = exp_nonpositive(-magnitude(logit));
  return excess + (e + excess * e);
}

template <class T>
constexpr int kFactors = 120;  // number of factors whose product cannot overflow: 2^120 < 3.4e38
template <>
constexpr int kFactors<double> = 1000;

}  // namespace
}  // namespace dgmfast

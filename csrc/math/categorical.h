// A label's share of Σ_y q_y (v_y − log q_y).
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// q (value - log q), also where q and log q are both shifted by a constant; an impossible label has no entropy.
template <class T>
DGMFAST_HOST_DEVICE T label_term(T q, T log_q, T value) {
  return q * (value - (q == T(0) ? T(0) : log_q));
}

template <class T>
struct LabelGradients {
  T logit, value;
};

// The derivatives of `total`, the sum of all labels' terms, by one label's logit and value.
template <class T>
DGMFAST_HOST_DEVICE LabelGradients<T> label_gradients(T log_q, T value, T total) {
  const T q = exp_nonpositive(log_q);
  return {label_term(q, log_q, value - total), q};
}

}  // namespace
}  // namespace dgmfast

// One label's term of the sum Σ_y q_y (v_y − log q_y), and its derivatives.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// Returns q (value - log_q). q may be scaled by a constant if log_q is shifted by its logarithm. A label with q = 0 has no
// entropy: its term q log q counts as 0.
template <class T>
DGMFAST_HOST_DEVICE T label_term(T q, T log_q, T value) {
  return q * (value - (q == T(0) ? T(0) : log_q));
}

template <class T>
struct LabelGradients {
  T logit, value;
};

// Returns the derivatives of `total`, the sum of all labels' terms, with respect to one label's logit and value.
template <class T>
DGMFAST_HOST_DEVICE LabelGradients<T> label_gradients(T log_q, T value, T total) {
  const T q = exp_nonpositive(log_q);
  return {label_term(q, log_q, value - total), q};
}

}  // namespace
}  // namespace dgmfast

// Activations, and their derivatives as functions of the output, so that a layer need not keep its input.
//
// value(a) returns the activation of a. gradient(g, out) returns g times the derivative at the a for which value(a) = out. Both
// match torch's functions of the same name, including their thresholds. value(a) is NaN if a is.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

// value(a) = a.
struct Identity {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    return a;
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T) {
    return g;
  }
};

// value(a) = max(a, 0).
struct Relu {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    return a < T(0) ? T(0) : a;
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {
    return out <= T(0) ? T(0) : g;
  }
};

// value(a) = a for a > 0, otherwise 0.1 a.
struct LeakyRelu {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    return a > T(0) ? a : a * T(0.1);
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {
    return out > T(0) ? g : g * T(0.1);
  }
};

// value(a) = tanh(a), within 1.5 ulp.
struct Tanh {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
#ifdef __CUDA_ARCH__
    return ::tanh(a);
#else
    const T size = tanh_nonnegative(magnitude(a));
    return a < T(0) ? -size : size;
#endif
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {
    return g * (T(1) - out * out);
  }
};

// value(a) = log(1 + e^a); for a > 20 it is a itself.
struct Softplus {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    const T soft = maximum(a, T(0)) + log1p_unit(exp_nonpositive(-magnitude(a)));
    return a > T(20) ? a : soft;
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {  // the derivative is sigmoid(a) = 1 - e^{-softplus(a)}
    return out > T(20) ? g : -g * expm1_nonpositive(-out);
  }
};

// value(a) = a for a > 0, otherwise e^a - 1.
struct Elu {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    return a > T(0) ? a : expm1_nonpositive(a);
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {
    return out > T(0) ? g : g * (out + T(1));
  }
};

}  // namespace
}  // namespace dgmfast

// Activations, and their derivatives in terms of their outputs, so that a layer need not keep what went in.
//
// value(a): the output. gradient(g, out): g times the derivative at the number whose output is `out`. Both do as torch's
// functions of the same name, thresholds included, and let NaN through.
#pragma once

#include "math/elementary.h"

namespace dgmfast {
namespace {

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

struct Softplus {
  template <class T>
  DGMFAST_HOST_DEVICE static T value(T a) {
    const T soft = maximum(a, T(0)) + log1p_unit(exp_nonpositive(-magnitude(a)));
    return a > T(20) ? a : soft;
  }
  template <class T>
  DGMFAST_HOST_DEVICE static T gradient(T g, T out) {  // sigmoid(a) = 1 - e^{-softplus(a)}
    return out > T(20) ? g : -g * expm1_nonpositive(-out);
  }
};

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

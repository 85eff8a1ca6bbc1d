// Maps an Activation to its formula. Everything has internal linkage, as in csrc/math.
#pragma once

#include "kernels/row_plan.h"
#include "math/activation.h"

namespace dgmfast {
namespace {

// Calls body(F()), where F is the activation's struct from math/activation.h.
template <class Body>
DGMFAST_HOST_DEVICE void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::identity:
      return body(Identity());
    case Activation::relu:
      return body(Relu());
    case Activation::leaky_relu:
      return body(LeakyRelu());
    case Activation::tanh:
      return body(Tanh());
    case Activation::softplus:
      return body(Softplus());
    case Activation::elu:
      return body(Elu());
  }
}

}  // namespace
}  // namespace dgmfast

// The checks of an op's arguments, with readable messages, and what they need to know of a tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/SmallVector.h>
#include <c10/util/string_view.h>

#include <optional>
#include <sstream>
#include <string>

#include "kernels/row_plan.h"

namespace dgmfast {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
template <class Int>
using Shape = c10::SmallVector<Int, 6>;

// One tensor argument by the name users know; `tensor` is null where an optional argument was left out.
struct Arg {
  const char* name;
  const Tensor* tensor;
};

inline const Tensor* pointer(const OptionalTensor& t) { return t.has_value() && t->defined() ? &*t : nullptr; }
inline const void* data(const Tensor* t) { return t ? t->const_data_ptr() : nullptr; }

template <class Int>
c10::ArrayRef<Int> sizes(const Tensor& t) {
  if constexpr (std::is_same_v<Int, c10::SymInt>) {
    return t.sym_sizes();
  } else {
    return t.sizes();
  }
}

DType dtype_of(const Tensor& t);

// Sums of hundreds of nats are kept out of 16 bits.
inline at::ScalarType accumulate_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// One device for all, and one floating dtype that the device's kernels take.
void check_floating(const char* op, c10::ArrayRef<Arg> args);
void check_same_device(const char* op, const Arg& expected, const Arg& got);
// On the device of `first`, and of its dtype, or bool or uint8: binary data.
void check_data(const char* op, const Arg& first, const Arg& data);

// The activation of a name; none is the identity.
Activation activation_of(const char* op, const std::optional<c10::string_view>& name);

// Broadcasts the leading dimensions of an argument [..., D] with `shape`, in place. Int is SymInt under Meta.
template <class Int>
void join_leading(const char* op, const Arg& arg, Shape<Int>& shape);

// The broadcast shape of the leading dimensions of arguments [..., D] that share D.
template <class Int>
Shape<Int> leading_shape(const char* op, c10::ArrayRef<Arg> args);

// An incoming gradient must look like the output it belongs to: `shape`, on the device and of the dtype of the op's `first`
// argument.
template <class Int>
void check_gradient(const char* op, const Arg& grad, const Arg& first, c10::ArrayRef<Int> shape);

// The shape as text, for messages.
template <class Int>
std::string text(c10::ArrayRef<Int> shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

// Whether ops on this device run CUDA kernels: on a card, and in a build with DGMFAST_CUDA_ON_HOST, which is for tests, on the
// CPU.
inline bool runs_cuda([[maybe_unused]] const at::Device& device) {
#ifdef DGMFAST_CUDA_ON_HOST
  return true;
#else
  return device.is_cuda();
#endif
}

}  // namespace dgmfast

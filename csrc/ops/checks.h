// The checks of an op's arguments, with readable messages, and the queries on tensors that they need.
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

// One tensor argument, with the name that users know. `tensor` is null if an optional argument was left out.
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

// The dtype of sums. Sums of hundreds of nats are not kept in 16 bits.
inline at::ScalarType accumulate_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Checks that all arguments are on one device and have one floating dtype, which the device's kernels take.
void check_floating(const char* op, c10::ArrayRef<Arg> args);
void check_same_device(const char* op, const Arg& expected, const Arg& got);
// Checks that `data` is on the device of `first` and has its dtype, or is binary data of dtype bool or uint8.
void check_data(const char* op, const Arg& first, const Arg& data);

// Returns the activation with this name, and the identity if there is no name.
Activation activation_of(const char* op, const std::optional<c10::string_view>& name);

// Broadcasts `shape` with the leading dimensions of an argument [..., D], in place. Int is SymInt under Meta.
template <class Int>
void join_leading(const char* op, const Arg& arg, Shape<Int>& shape);

// Returns the broadcast shape of the leading dimensions of arguments [..., D], after checking that they share D.
template <class Int>
Shape<Int> leading_shape(const char* op, c10::ArrayRef<Arg> args);

// Checks that an incoming gradient looks like the output that it belongs to: it has the shape `shape`, and the device and dtype
// of the op's `first` argument.
template <class Int>
void check_gradient(const char* op, const Arg& grad, const Arg& first, c10::ArrayRef<Int> shape);

// Returns the shape as text, for messages.
template <class Int>
std::string text(c10::ArrayRef<Int> shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

// Returns whether ops on this device run CUDA kernels. They do so on a CUDA device and, in a build with DGMFAST_CUDA_ON_HOST,
// which is for tests, also on the CPU.
inline bool runs_cuda([[maybe_unused]] const at::Device& device) {
#ifdef DGMFAST_CUDA_ON_HOST
  return true;
#else
  return device.is_cuda();
#endif
}

}  // namespace dgmfast

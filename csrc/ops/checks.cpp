#include "ops/checks.h"

#include <algorithm>
#include <array>

namespace dgmfast {

namespace {

std::string name_of(at::ScalarType type) {
  const auto [name, legacy] = c10::getDtypeNames(type);
  return std::string(name);
}

}  // namespace

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    default:
      return DType::u8;
  }
}

void check_same_device(const char* op, const Arg& expected, const Arg& got) {
  TORCH_CHECK_VALUE(got.tensor->device() == expected.tensor->device(), op, ": ", got.name, " must be on the device of ",
                    expected.name, ", ", expected.tensor->device(), "; got ", got.tensor->device());
}

void check_floating(const char* op, c10::ArrayRef<Arg> args) {
  const Tensor& first = *args[0].tensor;
  const at::ScalarType type = first.scalar_type();
  const bool half = type == at::kHalf || type == at::kBFloat16;
  const bool cpu = first.is_cpu() && !runs_cuda(first.device());
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || (half && !cpu), op, ": ", args[0].name,
                   cpu ? " must be float32 or float64 on the CPU; got " : " must be float32, float64, bfloat16 or float16; got ",
                   name_of(type));
  for (const Arg& arg : args.slice(1)) {
    if (!arg.tensor) continue;
    check_same_device(op, args[0], arg);
    TORCH_CHECK_TYPE(arg.tensor->scalar_type() == type, op, ": ", arg.name, " must have the dtype of ", args[0].name, ", ",
                     name_of(type), "; got ", name_of(arg.tensor->scalar_type()));
  }
}

void check_data(const char* op, const Arg& first, const Arg& data) {
  const at::ScalarType type = data.tensor->scalar_type();
  if (type != at::kBool && type != at::kByte) return check_floating(op, {first, data});
  check_floating(op, {first});
  check_same_device(op, first, data);
}

Activation activation_of(const char* op, const std::optional<c10::string_view>& name) {
  if (!name) return Activation::identity;
  constexpr std::array<std::pair<const char*, Activation>, 6> known{{{"identity", Activation::identity},
                                                                     {"relu", Activation::relu},
                                                                     {"leaky_relu", Activation::leaky_relu},
                                                                     {"tanh", Activation::tanh},
                                                                     {"softplus", Activation::softplus},
                                                                     {"elu", Activation::elu}}};
  const auto* found = std::find_if(known.begin(), known.end(), [&](const auto& entry) { return *name == entry.first; });
  TORCH_CHECK_VALUE(found != known.end(), op,
                    ": activation must be None, identity, relu, leaky_relu, tanh, softplus or elu; got '", *name, "'");
  return found->second;
}

template <class Int>
void join_leading(const char* op, const Arg& arg, Shape<Int>& shape) {
  const auto size = sizes<Int>(*arg.tensor);
  const size_t rank = size.size() - 1;
  if (rank > shape.size()) shape.insert(shape.begin(), rank - shape.size(), Int(1));
  for (size_t i = 0; i < rank; ++i) {
    Int& out = shape[shape.size() - rank + i];
    if (size[i] == out) continue;
    TORCH_CHECK_VALUE(size[i] == 1 || out == 1, op, ": ", arg.name,
                      " must broadcast over its leading dimensions with those of the arguments before it, ",
                      text(c10::ArrayRef<Int>(shape)), "; got ", text(size));
    if (out == 1) out = size[i];
  }
}

template void join_leading(const char*, const Arg&, Shape<int64_t>&);
template void join_leading(const char*, const Arg&, Shape<c10::SymInt>&);

template <class Int>
Shape<Int> leading_shape(const char* op, c10::ArrayRef<Arg> args) {
  Shape<Int> shape;
  for (const Arg& arg : args) {
    if (!arg.tensor) continue;
    const auto size = sizes<Int>(*arg.tensor);
    TORCH_CHECK_VALUE(!size.empty(), op, ": ", arg.name, " must have shape [..., D]; got a 0-dimensional tensor");
    const auto expected = sizes<Int>(*args[0].tensor);
    TORCH_CHECK_VALUE(size.back() == expected.back(), op, ": ", arg.name, " must have the last dimension of ", args[0].name, ", ",
                      text(expected), "; got ", text(size));
    join_leading(op, arg, shape);
  }
  return shape;
}

template Shape<int64_t> leading_shape(const char*, c10::ArrayRef<Arg>);
template Shape<c10::SymInt> leading_shape(const char*, c10::ArrayRef<Arg>);

template <class Int>
void check_gradient(const char* op, const Arg& grad, const Arg& first, c10::ArrayRef<Int> shape) {
  check_floating(op, {{first, grad}});
  TORCH_CHECK_VALUE(sizes<Int>(*grad.tensor) == shape, op, "_backward: ", grad.name, " must have the output's shape, ",
                    text(shape), "; got ", text(sizes<Int>(*grad.tensor)));
}

template void check_gradient(const char*, const Arg&, const Arg&, c10::ArrayRef<int64_t>);
template void check_gradient(const char*, const Arg&, const Arg&, c10::ArrayRef<c10::SymInt>);

}  // namespace dgmfast

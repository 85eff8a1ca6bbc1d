#include "ops/rows.h"

#include <ATen/Parallel.h>
#include <ATen/core/TensorBase.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <bitset>

namespace dgmfast {

namespace {

// Below this many numbers a thread costs more than it saves.
constexpr int64_t kGrain = 16384;

std::string name_of(at::ScalarType type) {
  const auto [name, legacy] = c10::getDtypeNames(type);
  return std::string(name);
}

template <class Int>
std::string text(c10::ArrayRef<Int> shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
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

Tensor with_unit_stride(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }
OptionalTensor with_unit_stride(const OptionalTensor& t) {
  return pointer(t) ? OptionalTensor(with_unit_stride(*t)) : std::nullopt;
}

namespace {

using DimSet = std::bitset<64>;  // of leading dimensions: torch has at most 64

// The stride of an input along each leading dimension; 0 where it is broadcast.
Shape<int64_t> leading_strides(at::IntArrayRef leading, const PlanInput& input) {
  Shape<int64_t> strides(leading.size(), 0);
  if (input.kind == PlanInput::Kind::linear) {
    int64_t stride = 1;
    for (size_t d = leading.size(); d-- > 0; stride *= leading[d]) strides[d] = stride;
    return strides;
  }
  if (!input.tensor) return strides;
  const size_t rank = input.tensor->dim() - (input.kind == PlanInput::Kind::row);
  for (size_t i = 0; i < rank; ++i) {
    if (input.tensor->size(i) != 1) strides[leading.size() - rank + i] = input.tensor->stride(i);
  }
  return strides;
}

// The dimensions of `leading` named in `take`, in order, with neighbours merged where every input walks them as one.
Grid make_grid(const char* op, at::IntArrayRef leading, c10::ArrayRef<Shape<int64_t>> strides, DimSet take) {
  Grid grid;
  for (size_t d = 0; d < leading.size(); ++d) {
    if (!take[d]) continue;
    grid.rows *= leading[d];
    if (leading[d] == 1) continue;
    const int last = grid.dims - 1;
    bool merge = grid.dims > 0;
    for (size_t i = 0; i < strides.size() && merge; ++i) merge = grid.stride[i][last] == strides[i][d] * leading[d];
    if (merge) {
      grid.size[last] *= leading[d];
      for (size_t i = 0; i < strides.size(); ++i) grid.stride[i][last] = strides[i][d];
      continue;
    }
    TORCH_CHECK_VALUE(grid.dims < kMaxDims, op, ": expected at most ", kMaxDims,
                      " leading dimensions that broadcast differently; got more in ", text(leading));
    grid.size[grid.dims] = leading[d];
    for (size_t i = 0; i < strides.size(); ++i) grid.stride[i][grid.dims] = strides[i][d];
    ++grid.dims;
  }
  return grid;
}

RowPlan make_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs,
                  DimSet reduced) {
  c10::SmallVector<Shape<int64_t>, kMaxInputs> strides;
  for (const PlanInput& input : inputs) strides.push_back(leading_strides(leading, input));
  RowPlan plan;
  plan.dim = dim;
  plan.dtype = dtype;
  plan.outer = make_grid(op, leading, strides, ~reduced);
  plan.inner = make_grid(op, leading, strides, reduced);
  return plan;
}

// The leading dimensions that `t` is broadcast over.
DimSet broadcast_dims(at::IntArrayRef leading, const Tensor& t) {
  const size_t missing = leading.size() - (t.dim() - 1);
  DimSet dims;
  for (size_t d = 0; d < leading.size(); ++d) {
    if (d < missing || (t.size(d - missing) == 1 && leading[d] != 1)) dims.set(d);
  }
  return dims;
}

// A gradient that is wanted of an argument that was left out.
void check_wanted(const char* op, size_t i, bool wanted, const Tensor* input) {
  TORCH_CHECK_VALUE(!wanted || input, op, "_backward: wanted must be false for argument ", i, ", which was left out; got true");
}

}  // namespace

RowPlan forward_plan(const char* op, at::IntArrayRef leading, int64_t dim, DType dtype, c10::ArrayRef<PlanInput> inputs) {
  return make_plan(op, leading, dim, dtype, inputs, {});
}

namespace detail {

void run_on_cpu(int64_t items, int64_t cost, c10::function_ref<void(int64_t, int64_t)> body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost));
  at::parallel_for(0, items, grain, body);
}

void run_with_scratch(int64_t bytes, int64_t items, int64_t grain, c10::function_ref<void(void*, int64_t, int64_t)> body) {
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // threads do not inherit it
    const Tensor scratch = at::empty({bytes}, at::TensorOptions(at::kByte));
    body(scratch.mutable_data_ptr(), begin, end);
  });
}

void run_on_cuda(const at::Device& device, c10::function_ref<void(void*)> body) {
  if (!device.is_cuda()) return body(nullptr);  // DGMFAST_CUDA_ON_HOST
  const c10::DeviceGuard guard(device);
  body(c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle());
}

void gradients(const char* op, at::IntArrayRef leading, int64_t dim, c10::ArrayRef<PlanInput> inputs, c10::ArrayRef<bool> wanted,
               std::span<Tensor> grads, GradientRun run) {
  const Tensor& first = *inputs[0].tensor;
  std::array<DimSet, kMaxInputs> reduced;
  for (size_t i = 0; i < wanted.size(); ++i) {
    check_wanted(op, i, wanted[i], inputs[i].tensor);
    grads[i] = wanted[i] ? at::empty(inputs[i].tensor->sizes(), first.options()) : at::empty({0}, first.options());
    if (wanted[i]) reduced[i] = broadcast_dims(leading, *inputs[i].tensor);
  }
  uint32_t done = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!wanted[i] || (done >> i & 1u)) continue;
    RowPlan plan = make_plan(op, leading, dim, dtype_of(first), inputs, reduced[i]);
    const bool empty = plan.inner.rows == 0;
    const int64_t targets = plan.outer.rows * dim;
    if (runs_cuda(first.device()) && targets > 0 && targets < kCudaThreads) {
      plan.segments = std::min(plan.inner.rows, std::max<int64_t>(1, kCudaThreads / targets));
    }
    c10::SmallVector<void*, kMaxInputs> out(wanted.size(), nullptr);
    c10::SmallVector<Tensor, kMaxInputs> partial(wanted.size());
    for (size_t j = i; j < wanted.size(); ++j) {
      if (!wanted[j] || reduced[j] != reduced[i]) continue;
      done |= 1u << j;
      if (empty) grads[j].zero_();
      const auto options = grads[j].options().dtype(sum_type(first));
      partial[j] = plan.segments > 1 ? at::empty({plan.segments, plan.outer.rows * dim}, options) : grads[j];
      out[j] = partial[j].mutable_data_ptr();
    }
    if (empty) continue;
    run(plan, plan.outer.rows * ((dim + kColumnsPerItem - 1) / kColumnsPerItem), out);
    if (plan.segments == 1) continue;
    for (size_t j = 0; j < wanted.size(); ++j) {
      if (out[j]) grads[j] = partial[j].sum(0).to(first.scalar_type()).view(grads[j].sizes());
    }
  }
}

}  // namespace detail

template <size_t N>
std::array<Tensor, N> meta_gradients(const char* op, const std::array<const Tensor*, N>& inputs,
                                     const std::array<bool, N>& wanted) {
  std::array<Tensor, N> grads;
  for (size_t i = 0; i < N; ++i) {
    check_wanted(op, i, wanted[i], inputs[i]);
    grads[i] = wanted[i] ? at::empty_symint(inputs[i]->sym_sizes(), inputs[0]->options()) : at::empty({0}, inputs[0]->options());
  }
  return grads;
}

template std::array<Tensor, 2> meta_gradients(const char*, const std::array<const Tensor*, 2>&, const std::array<bool, 2>&);
template std::array<Tensor, 3> meta_gradients(const char*, const std::array<const Tensor*, 3>&, const std::array<bool, 3>&);
template std::array<Tensor, 4> meta_gradients(const char*, const std::array<const Tensor*, 4>&, const std::array<bool, 4>&);

}  // namespace dgmfast

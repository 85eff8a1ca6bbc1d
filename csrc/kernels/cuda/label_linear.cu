#include "kernels/label_linear.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/activation.h"

namespace dgmfast {
namespace {

// Calls body(Stored, F), where F is the activation.
template <class Body>
void with_types(DType dtype, Activation activation, Body body) {
  with_stored_type(dtype, [&](auto type) {
    switch (activation) {
      case Activation::identity:
        return body(type, Identity());
      case Activation::relu:
        return body(type, Relu());
      case Activation::leaky_relu:
        return body(type, LeakyRelu());
      case Activation::tanh:
        return body(type, Tanh());
      case Activation::softplus:
        return body(type, Softplus());
      case Activation::elu:
        return body(type, Elu());
    }
  });
}

// Each thread writes one column of all labels of a row. Neighbouring threads take neighbouring columns.
template <class Stored, class F>
__global__ void __launch_bounds__(kBlock) forward(LabelLinear p) {
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (index >= p.rows * p.dim) return;
  const int64_t row = index / p.dim, h = index % p.dim;
  const Real<Stored> shared = load<Stored>(p.shared, index);
  for (int64_t y = 0; y < p.labels; ++y) {
    store<Stored>(p.out, (row * p.labels + y) * p.dim + h, F::value(shared + load<Stored>(p.label_weight, y * p.dim + h)));
  }
}

template <class Stored, class F>
__device__ __forceinline__ Real<Stored> delta(const LabelLinearBackward& p, int64_t row, int64_t y, int64_t h) {
  const int64_t i = (row * p.labels + y) * p.dim + h;
  return F::gradient(load<Stored>(p.grad, i), load<Stored>(p.out, i));
}

template <class Stored, class F>
__global__ void __launch_bounds__(kBlock) sum_labels(LabelLinearBackward p) {
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (index >= p.rows * p.dim) return;
  Real<Stored> sum = 0;
  for (int64_t y = 0; y < p.labels; ++y) sum += delta<Stored, F>(p, index / p.dim, y, index % p.dim);
  store<Stored>(p.grad_shared, index, sum);
}

template <class Stored, class F>
__global__ void __launch_bounds__(kBlock) sum_segments(LabelLinearBackward p) {
  const int64_t index = int64_t(blockIdx.x) * kBlock + threadIdx.x, targets = p.labels * p.dim;
  if (index >= p.segments() * targets) return;
  const int64_t segment = index / targets, y = index % targets / p.dim, h = index % p.dim;
  const int64_t last = minimum((segment + 1) * p.segment, p.rows);
  Real<Stored> sum = 0;
  for (int64_t row = segment * p.segment; row < last; ++row) sum += delta<Stored, F>(p, row, y, h);
  store<Real<Stored>>(p.grad_label_weight, index, sum);
}

template <class Params>
void launch(void (*kernel)(Params), const Params& p, int64_t threads, void* stream) {
  if (threads == 0) return;
  kernel<<<unsigned((threads + kBlock - 1) / kBlock), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("label_linear");
}

}  // namespace

namespace cuda {

void label_linear(const LabelLinear& p, void* stream) {
  with_types(p.dtype, p.activation,
             [&](auto type, auto f) { launch(forward<decltype(type), decltype(f)>, p, p.rows * p.dim, stream); });
}

void label_linear_backward(const LabelLinearBackward& p, void* stream) {
  with_types(p.dtype, p.activation, [&](auto type, auto f) {
    using Stored = decltype(type);
    using F = decltype(f);
    if (p.grad_shared) launch(sum_labels<Stored, F>, p, p.rows * p.dim, stream);
    if (p.grad_label_weight) launch(sum_segments<Stored, F>, p, p.segments() * p.labels * p.dim, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

// Inputs and plans for the kernels. The inputs are arrays on the heap of exactly the size that is read, so that a sanitizer sees
// a read beyond it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "kernels/kernel.h"
#include "kernels/row_plan.h"
#ifdef DGMFAST_CUDA
#include "cuda/emulator.h"
#endif

namespace dgmfast {
namespace cpu {}
namespace cuda {}
}  // namespace dgmfast

namespace geometry {

using dgmfast::DType;
using dgmfast::RowPlan;

inline const std::vector<int64_t> kSizes = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 256, 257, 784, 4097};

// A small random number generator, so that the tests draw the same numbers on every machine.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 2654435761u + 1) {}
  double unit() { return double((state = state * 6364136223846793005u + 1442695040888963407u) >> 11) / 9007199254740992.0; }
  double between(double low, double high) { return low + (high - low) * unit(); }
};

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::f64 : sizeof(T) == 4 ? DType::f32 : DType::u8;
}

// The shape [outer, inner, dim] of rows. An input may be shared over the outer or the inner rows (stride 0), or have gaps between
// its rows.
struct Shape {
  int64_t outer, inner, dim;
};

template <class T>
struct Input {
  std::vector<T> data;
  int64_t outer_stride, inner_stride;

  Input(const Shape& s, bool per_outer, bool per_inner, int64_t gap, uint64_t seed, double low, double high)
      : outer_stride(per_outer ? (per_inner ? s.inner : 1) * (s.dim + gap) : 0), inner_stride(per_inner ? s.dim + gap : 0) {
    Random random(seed);
    data.resize((s.outer - 1) * outer_stride + (s.inner - 1) * inner_stride + s.dim);
    for (T& x : data) x = sizeof(T) == 1 ? T(random.unit() < 0.5) : T(random.between(low, high));
  }

  const T* row(int64_t outer, int64_t inner = 0) const { return data.data() + outer * outer_stride + inner * inner_stride; }
};

// Sets the strides of input i, or of anything else, in a plan.
inline void set_strides(RowPlan& plan, int i, int64_t outer, int64_t inner) {
  plan.outer.stride[i][0] = outer;
  plan.inner.stride[i][0] = inner;
}

template <class T>
RowPlan make_plan(const Shape& s, const std::vector<const Input<T>*>& inputs) {
  RowPlan plan;
  plan.dim = s.dim;
  plan.dtype = dtype_of<T>();
  plan.outer.dims = plan.inner.dims = 1;
  plan.outer.rows = plan.outer.size[0] = s.outer;
  plan.inner.rows = plan.inner.size[0] = s.inner;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i]) set_strides(plan, int(i), inputs[i]->outer_stride, inputs[i]->inner_stride);
  }
  return plan;
}

// The kernels that a test file tests: the CPU kernels or, with DGMFAST_CUDA, the CUDA kernels, which are run by the emulator.
#ifdef DGMFAST_CUDA
namespace backend = dgmfast::cuda;
#else
namespace backend = dgmfast::cpu;
#endif

// Runs a CPU kernel on its items in three pieces, out of order, as threads would.
template <class Params>
void run(dgmfast::CpuKernel<Params> kernel, const Params& params, int64_t items) {
  const int64_t a = items / 3, b = items - items / 4;
  kernel(params, b, items);
  kernel(params, 0, a);
  kernel(params, a, b);
}

// Launches a CUDA kernel as the ops do: only if there are items.
template <class Params>
void run(dgmfast::CudaKernel<Params> kernel, const Params& params, int64_t items) {
  if (items > 0) kernel(params, nullptr);
}

inline int64_t gradient_items(const RowPlan& plan) { return plan.outer.rows * ((plan.dim + 255) / 256); }

// Calls body once for every instruction set of the processor or, for CUDA, for three orders in which the threads of a block run.
template <class Body>
void on_every_path(Body body) {
#ifdef DGMFAST_CUDA
  for (const auto schedule : {emu::Schedule::forward, emu::Schedule::reverse, emu::Schedule::random}) {
    emu::set_schedule(schedule);
    body();
    CHECK(emu::counts().errors == 0);
  }
  emu::set_schedule(emu::Schedule::forward);
#else
  const dgmfast::Isa active = dgmfast::active_isa();
  for (const auto isa : {dgmfast::Isa::baseline, dgmfast::Isa::avx2, dgmfast::Isa::avx512}) {
    if (!dgmfast::isa_available(isa)) continue;
    dgmfast::set_isa(isa);
    body();
  }
  dgmfast::set_isa(active);
#endif
}

// Returns the exact value of an activation of kernels/row_plan.h.
inline long double exact_activation(dgmfast::Activation activation, long double a) {
  switch (activation) {
    case dgmfast::Activation::identity:
      return a;
    case dgmfast::Activation::relu:
      return a > 0 ? a : 0;
    case dgmfast::Activation::leaky_relu:
      return a > 0 ? a : 0.1L * a;
    case dgmfast::Activation::tanh:
      return std::tanh(a);
    case dgmfast::Activation::softplus:
      return a > 20 ? a : std::log1p(std::exp(a));
    case dgmfast::Activation::elu:
      return a > 0 ? a : std::expm1(a);
  }
  return 0;
}

// Returns whether `got` is within `roundings` rounding errors of T from `exact`. `size` is the sum of the magnitudes of what was
// added up.
template <class T>
bool near(T got, long double exact, long double size, double roundings = 40) {
  return std::fabs(got - exact) <= roundings * std::numeric_limits<T>::epsilon() * (1 + std::fabs(size));
}

}  // namespace geometry

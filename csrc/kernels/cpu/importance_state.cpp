#include "kernels/importance_state.h"

#include "kernels/cpu/row_loops.h"
#include "math/importance.h"

namespace dgmfast {
namespace {

template <class T>
WeightState row_state(const T* log_w, int64_t k) {
  double top = -infinity<double>();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < k; ++i) top = maximum(double(log_w[i]), top);
  const double shift = top == -infinity<double>() ? 0.0 : top;
  double sum = 0, squares = 0, logs = 0;
#pragma omp simd reduction(+ : sum, squares, logs)
  for (int64_t i = 0; i < k; ++i) {
    const double log_weight = double(log_w[i]), weight = log_weight == shift ? 1.0 : exp(log_weight - shift);
    sum += weight;
    squares += weight * weight;
    logs += log_weight;
  }
  return {top, sum, squares, logs, double(k)};
}

template <class T>
void update(const ImportanceState& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    WeightState state;
    if (p.before) state = read_state(p.before + row.offset(1));
    if (p.plan.dim > 0) state.merge(row_state(static_cast<const T*>(p.log_w) + row.offset(0), p.plan.dim));
    write_state(p.after + r * kStateSize, state);
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void importance_state(const ImportanceState& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { update<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

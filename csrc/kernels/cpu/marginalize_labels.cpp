#include "kernels/marginalize_labels.h"

#include "kernels/cpu/row_loops.h"
#include "math/categorical.h"

namespace dgmfast {
namespace {

template <class T>
struct RowSums {
  T top, log_sum, pivot, rest;
};

// The row's result is pivot + rest. The pivot is subtracted from the values, so that differences of a few nats between values
// near −100 nats keep all their digits.
template <class T>
RowSums<T> row_sums(const T* logits, const T* values, int64_t labels) {
  T top = -infinity<T>(), likely = -infinity<T>();
#pragma omp simd reduction(max : top)
  for (int64_t y = 0; y < labels; ++y) top = maximum(logits[y], top);
#pragma omp simd reduction(max : likely)
  for (int64_t y = 0; y < labels; ++y) likely = maximum(logits[y] == top ? values[y] : -infinity<T>(), likely);
  const T pivot = magnitude(likely) < infinity<T>() ? likely : T(0);
  T sum = 0, weighted = 0;
  for (int64_t begin = 0; begin < labels; begin += kSumBlock) {
    const int64_t end = minimum(begin + kSumBlock, labels);
    T block_sum = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_sum, block_weighted)
    for (int64_t y = begin; y < end; ++y) {
      const T log_weight = logits[y] - top, weight = exp_nonpositive(log_weight);
      block_sum += weight;
      block_weighted += label_term(weight, log_weight, values[y] - pivot);
    }
    sum += block_sum;
    weighted += block_weighted;
  }
  const T log_sum = sum > T(0) ? log_positive(sum) : sum;  // keeps NaN, which log_positive would lose
  return {top, log_sum, pivot, weighted / sum + log_sum};
}

template <class T>
void write_sums(const MarginalizeLabels& p, int64_t row, const RowSums<T>& s) {
  if (p.bound) {
    static_cast<T*>(p.bound)[row] = s.pivot + s.rest;
  } else {
    T* sums = static_cast<T*>(p.sums) + row * kLabelSums;
    sums[0] = s.top, sums[1] = s.log_sum, sums[2] = s.pivot, sums[3] = s.rest;
  }
}

template <class T>
void forward(const MarginalizeLabels& p, int64_t begin, int64_t end) {
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t r = begin; r < end; ++r, row.next()) {
    const T *logits = static_cast<const T*>(p.logits) + row.offset(0), *values = static_cast<const T*>(p.values) + row.offset(1);
    write_sums(p, r, row_sums(logits, values, p.plan.dim));
  }
}

template <class T>
void backward(const MarginalizeLabelsBackward& p, int64_t begin, int64_t end) {
  gradient_rows<T>(p.plan, 4, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const T* logits = static_cast<const T*>(p.input[0]) + offset[0] + column;
    const T* values = static_cast<const T*>(p.input[1]) + offset[1] + column;
    const T* sums = static_cast<const T*>(p.sums) + offset[3] * kLabelSums;
    const T g = static_cast<const T*>(p.grad)[offset[2]], top = sums[0], log_sum = sums[1], pivot = sums[2], rest = sums[3];
    T *out_0 = out[0], *out_1 = out[1];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      const LabelGradients<T> d = label_gradients((logits[c] - top) - log_sum, values[c] - pivot, rest);
      out_0[c] = g * d.logit;
      out_1[c] = g * d.value;
    }
  });
}

// A vector over few labels would be mostly empty. In that case each vector holds one label of kLanes rows.
constexpr int kLanes = 16;
constexpr int64_t kFewLabels = 32;

template <class T>
struct Lanes {
  T at[kFewLabels][kLanes];
};

// Copies a row into a lane.
template <class T>
void read_lane(Lanes<T>& lanes, int lane, const T* row, int64_t labels) {
  for (int64_t y = 0; y < labels; ++y) lanes.at[y][lane] = row[y];
}

// Copies a lane back into a row.
template <class T>
void write_lane(const Lanes<T>& lanes, int lane, T* row, int64_t labels) {
  for (int64_t y = 0; y < labels; ++y) row[y] = lanes.at[y][lane];
}

template <class T>
void forward_few(const MarginalizeLabels& p, int64_t begin, int64_t end) {
  Lanes<T> logits{}, values{};
  T top[kLanes], likely[kLanes], pivot[kLanes], sum[kLanes], weighted[kLanes], log_sum[kLanes], rest[kLanes];
  const int64_t labels = p.plan.dim;
  Cursor row(p.plan.outer, 2, begin);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(minimum(int64_t(kLanes), end - first));
    for (int j = 0; j < count; ++j, row.next()) {
      read_lane(logits, j, static_cast<const T*>(p.logits) + row.offset(0), labels);
      read_lane(values, j, static_cast<const T*>(p.values) + row.offset(1), labels);
    }
    for (int j = 0; j < kLanes; ++j) top[j] = likely[j] = -infinity<T>(), sum[j] = weighted[j] = T(0);
    for (int64_t y = 0; y < labels; ++y) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) top[j] = maximum(logits.at[y][j], top[j]);
    }
    for (int64_t y = 0; y < labels; ++y) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        likely[j] = maximum(logits.at[y][j] == top[j] ? values.at[y][j] : -infinity<T>(), likely[j]);
      }
    }
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) pivot[j] = magnitude(likely[j]) < infinity<T>() ? likely[j] : T(0);
    for (int64_t y = 0; y < labels; ++y) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        const T log_weight = logits.at[y][j] - top[j], weight = exp_nonpositive(log_weight);
        sum[j] += weight;
        weighted[j] += label_term(weight, log_weight, values.at[y][j] - pivot[j]);
      }
    }
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      log_sum[j] = sum[j] > T(0) ? log_positive(sum[j]) : sum[j];
      rest[j] = weighted[j] / sum[j] + log_sum[j];
    }
    for (int j = 0; j < count; ++j) write_sums(p, first + j, RowSums<T>{top[j], log_sum[j], pivot[j], rest[j]});
  }
}

// For inputs that are not broadcast, so that every row has its own gradients.
template <class T>
void backward_few(const MarginalizeLabelsBackward& p, int64_t begin, int64_t end) {
  Lanes<T> logits{}, values{};  // later overwritten by their gradients
  T grad[kLanes] = {}, top[kLanes] = {}, pivot[kLanes] = {}, rest[kLanes] = {}, log_sum[kLanes] = {};
  const int64_t labels = p.plan.dim;
  Cursor row(p.plan.outer, 4, begin);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(minimum(int64_t(kLanes), end - first));
    for (int j = 0; j < count; ++j, row.next()) {
      read_lane(logits, j, static_cast<const T*>(p.input[0]) + row.offset(0), labels);
      read_lane(values, j, static_cast<const T*>(p.input[1]) + row.offset(1), labels);
      grad[j] = static_cast<const T*>(p.grad)[row.offset(2)];
      const T* sums = static_cast<const T*>(p.sums) + row.offset(3) * kLabelSums;
      top[j] = sums[0], log_sum[j] = sums[1], pivot[j] = sums[2], rest[j] = sums[3];
    }
    for (int64_t y = 0; y < labels; ++y) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        const T log_q = (logits.at[y][j] - top[j]) - log_sum[j];
        const LabelGradients<T> d = label_gradients(log_q, values.at[y][j] - pivot[j], rest[j]);
        logits.at[y][j] = grad[j] * d.logit;
        values.at[y][j] = grad[j] * d.value;
      }
    }
    T *out_0 = static_cast<T*>(p.grad_input[0]), *out_1 = static_cast<T*>(p.grad_input[1]);
    for (int j = 0; j < count; ++j) {
      if (out_0) write_lane(logits, j, out_0 + (first + j) * labels, labels);
      if (out_1) write_lane(values, j, out_1 + (first + j) * labels, labels);
    }
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void marginalize_labels(const MarginalizeLabels& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) {
    using T = decltype(type);
    p.plan.dim <= kFewLabels ? forward_few<T>(p, begin, end) : forward<T>(p, begin, end);
  });
}

void marginalize_labels_backward(const MarginalizeLabelsBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) {
    using T = decltype(type);
    p.plan.dim <= kFewLabels&& p.plan.inner.rows == 1 ? backward_few<T>(p, begin, end) : backward<T>(p, begin, end);
  });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

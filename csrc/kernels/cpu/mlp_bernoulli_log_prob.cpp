// A decoder for a tile of rows. The outputs of its layers stay in cache, transposed, so that the rows lie in the lanes of
// vectors. No operation therefore combines two rows, and the logits are summed as they leave the registers.
#include "kernels/mlp_bernoulli_log_prob.h"

#include "kernels/cpu/activation.h"
#include "kernels/cpu/row_loops.h"
#include "kernels/cpu/vector.h"
#include "math/bernoulli.h"

namespace dgmfast {
namespace {

// The tile of sums in registers, outputs × vectors, is the largest that leaves some registers for the operands.
constexpr int kOutputs = kVectorBytes == 64 ? 12 : 6, kVectors = 2;
constexpr int64_t kInputs = 256;  // inputs that are summed at a time, to limit rounding error

static_assert(kMlpTileBytes >= kVectors * kVectorBytes);
static_assert(kMlpSegment % kOutputs == 0 && kMlpSegment <= kFactors<float> && kMlpSegment <= kFactors<double>);

// Computes out[r] = W[r] h + bias[r] for R outputs and V vectors of rows, where h is [inputs, rows] and out is [R, rows].
template <class T, int R, int V>
// Not inlined, because its pointers would not stay in registers. UBSan is off, because with both sanitizers it takes minutes to
// compile.
__attribute__((noinline, no_sanitize("undefined"))) void multiply(const T* h, const T* weight, int64_t inputs, const T* bias,
                                                                  T* out) {
  constexpr int lanes = Lanes<T>::count;
  for (int64_t begin = 0; begin == 0 || begin < inputs; begin += kInputs) {
    Vector<T> sum[R][V];
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      DGMFAST_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = begin == 0 ? bias[r] - Vector<T>{} : Vector<T>{};
    }
    const int64_t end = minimum(begin + kInputs, inputs);
#pragma GCC unroll 2
    for (int64_t k = begin; k < end; ++k) {
      Vector<T> value[V];
      DGMFAST_UNROLL
      for (int v = 0; v < V; ++v) value[v] = load(h + (k * V + v) * lanes);
      DGMFAST_UNROLL
      for (int r = 0; r < R; ++r) {
        DGMFAST_UNROLL
        for (int v = 0; v < V; ++v) sum[r][v] = weight[r * inputs + k] * value[v] + sum[r][v];
      }
    }
    DGMFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      DGMFAST_UNROLL
      for (int v = 0; v < V; ++v) {
        T* to = out + (r * V + v) * lanes;
        store(to, begin == 0 ? sum[r][v] : load(to) + sum[r][v]);
      }
    }
  }
}

// Computes the outputs [first, first + count) of a layer, at most kOutputs of them.
template <class T, int V>
void multiply_some(const MlpLayer& layer, const T* h, int64_t first, int64_t count, T* out) {
  const T *weight = static_cast<const T*>(layer.weight) + first * layer.inputs, *bias = static_cast<const T*>(layer.bias);
  with_constant<kOutputs>(
      count, [&](auto outputs) { multiply<T, decltype(outputs)::value, V>(h, weight, layer.inputs, bias + first, out); });
}

template <class T>
void activate(Activation activation, T* values, int64_t count) {
  with_activation(activation, [&](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) values[i] = decltype(f)::value(values[i]);
  });
}

// Adds the terms of Σ_d x_d l_d − softplus(l_d) for N rows to `linear` and `excess`, as row_log_prob of bernoulli_log_prob does.
// logits and x are [outputs, N].
template <class T, int N>
// Not inlined, because the compiler does not vectorise the inlined loop.
__attribute__((noinline)) void add_outputs(const T* logits, const T* x, int64_t outputs, T* linear, T* excess) {
  for (int64_t d = 0; d < outputs; ++d, logits += N, x += N) {
#pragma omp simd
    for (int i = 0; i < N; ++i) {
      linear[i] += bernoulli_linear(logits[i], x[i]);
      excess[i] = softplus_product(excess[i], logits[i]);
    }
  }
}

// Writes out[j][i] = row(i)[j] for the columns [begin, end) of N rows. The columns become the rows of `out`. A null row counts as
// 0.
template <class T, int N, class Row>
void transpose(Row row, int64_t begin, int64_t end, T* out) {
  constexpr int64_t block = 32;  // columns at a time, of which N rows stay in the first-level cache
  for (; begin < end; begin += block, out += block * N) {
    const int64_t count = minimum(block, end - begin);
    for (int i = 0; i < N; ++i) {
      const auto* from = row(i);
      for (int64_t j = 0; j < count; ++j) out[j * N + i] = from ? T(from[begin + j]) : T(0);
    }
  }
}

// A tile of V vectors of rows, and its scratch memory.
template <class T, class X, int V>
class Tile {
 public:
  static constexpr int rows = V * Lanes<T>::count;

  explicit Tile(const MlpBernoulliLogProb& p)
      : p_(p), in_(static_cast<T*>(p.scratch)), out_(in_ + rows * p.widest()), x_(out_ + rows * p.widest()) {}

  // Computes the `count` rows that begin at `first`. The other rows of the tile are 0.
  void log_prob(int64_t first, int64_t count) {
    const int64_t inputs = p_.layer[0].inputs;
    const T* h = static_cast<const T*>(p_.h) + first * inputs;
    transpose<T, rows>([&](int64_t i) { return i < count ? h + i * inputs : nullptr; }, 0, inputs, in_);
    for (int i = 0; i + 1 < p_.depth; ++i) apply(p_.layer[i]);
    sum(first, count);
  }

 private:
  const MlpBernoulliLogProb& p_;
  T *in_, *out_, *const x_;  // x_ holds one segment of x

  // Computes act(W in + b), which becomes the input of the next layer.
  void apply(const MlpLayer& layer) {
    for (int64_t o = 0; o < layer.outputs; o += kOutputs) {
      const int64_t outputs = minimum<int64_t>(kOutputs, layer.outputs - o);
      multiply_some<T, V>(layer, in_, o, outputs, out_ + o * rows);
      activate(p_.activation, out_ + o * rows, outputs * rows);
    }
    T* const made = out_;
    out_ = in_, in_ = made;
  }

  // Sums the log-likelihood in segments of the outputs, to limit rounding error.
  void sum(int64_t first, int64_t count) {
    T logits[kOutputs * rows], linear[rows], excess[rows], total[rows];
    for (int i = 0; i < rows; ++i) total[i] = T(0);
    for (int64_t begin = 0; begin < p_.dim(); begin += kMlpSegment) {
      const int64_t end = minimum(begin + kMlpSegment, p_.dim());
      take_x(first, count, begin, end);
      for (int i = 0; i < rows; ++i) linear[i] = excess[i] = T(0);
      for (int64_t d = begin; d < end; d += kOutputs) {
        const int64_t outputs = minimum<int64_t>(kOutputs, end - d);
        multiply_some<T, V>(p_.layer[p_.depth - 1], in_, d, outputs, logits);
        add_outputs<T, rows>(logits, x_ + (d - begin) * rows, outputs, linear, excess);
      }
#pragma omp simd
      for (int i = 0; i < rows; ++i) total[i] += linear[i] - log1p_nonnegative(excess[i]);
    }
    for (int64_t i = 0; i < count; ++i) static_cast<T*>(p_.log_prob)[first + i] = total[i];
  }

  // Transposes a segment of x into x_.
  void take_x(int64_t first, int64_t count, int64_t begin, int64_t end) {
    const auto row = [&](int64_t i) { return static_cast<const X*>(p_.x) + (first + i) / p_.samples * p_.x_stride; };
    const X* x = row(0);
    if (x != row(count - 1)) {
      return transpose<T, rows>([&](int64_t i) { return i < count ? row(i) : nullptr; }, begin, end, x_);
    }
    for (int64_t d = begin; d < end; ++d) {
      const Vector<T> value = T(x[d]) - Vector<T>{};
      for (int v = 0; v < V; ++v) store(x_ + (d - begin) * rows + v * Lanes<T>::count, value);
    }
  }
};

template <class T, class X>
void log_prob(const MlpBernoulliLogProb& p, int64_t begin, int64_t end) {
  Tile<T, X, kVectors> tile(p);
  for (; end - begin > tile.rows / kVectors; begin += tile.rows) tile.log_prob(begin, minimum<int64_t>(tile.rows, end - begin));
  if (begin < end) Tile<T, X, 1>(p).log_prob(begin, end - begin);
}

}  // namespace

namespace cpu::DGMFAST_ISA {

// An item is a row.
void mlp_bernoulli_log_prob(const MlpBernoulliLogProb& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    p.x_type == DType::u8 ? log_prob<T, uint8_t>(p, begin, end) : log_prob<T, T>(p, begin, end);
  });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

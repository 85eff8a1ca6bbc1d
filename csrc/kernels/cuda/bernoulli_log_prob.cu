#include "kernels/bernoulli_log_prob.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/bernoulli.h"

namespace dgmfast {
namespace {

template <class Stored, class X>
struct Forward {
  BernoulliLogProb p;

  using R = Real<Stored>;

  // The factors 1 + e^−|l| are multiplied as long as their product cannot overflow, so that few logarithms are taken and added
  // up.
  struct Sum {
    R linear = 0, logs = 0, excess = 0;
    int factors = 0;

    __device__ __forceinline__ void close() {
      logs += log1p_nonnegative(excess);
      excess = 0, factors = 0;
    }
    __device__ __forceinline__ R total() {
      close();
      return linear - logs;
    }
  };

  template <int V>
  __device__ __forceinline__ void add(Sum& own, const int64_t* offset, int64_t d) const {
    R logits[V], x[V];
    load_pack<Stored>(p.logits, offset[0] + d, logits);
    load_pack<X>(p.x, offset[1] + d, x);
    if (own.factors + V > kFactors<R>) own.close();
    own.factors += V;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      own.linear += bernoulli_linear(logits[v], x[v]);
      own.excess = softplus_product(own.excess, logits[v]);
    }
  }
  __device__ R finish(R sum, int64_t) const { return sum; }
};

template <class Stored, class X>
struct Backward {
  BernoulliLogProbBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[2]) const {
    using R = Real<Stored>;
    const R grad = load<Stored>(p.grad, offset[2]), logit = load<Stored>(p.input[0], offset[0] + d);
    sum[0] += grad * (R(load<X>(p.input[1], offset[1] + d)) - sigmoid(logit));
    sum[1] += grad * logit;
  }
};

template <class Body>
void with_types(DType dtype, DType x_type, Body body) {
  with_stored_type(dtype, [&](auto type) { x_type == DType::u8 ? body(type, uint8_t()) : body(type, type); });
}

}  // namespace

namespace cuda {

void bernoulli_log_prob(const BernoulliLogProb& p, void* stream) {
  with_types(p.plan.dtype, p.x_type, [&](auto type, auto x) {
    using Stored = decltype(type);
    const void* inputs[] = {p.logits, p.x};
    const int bytes[] = {sizeof(type), sizeof(x)};
    launch_sum_rows<Stored, 2>("bernoulli_log_prob", p.plan, Forward<Stored, decltype(x)>{p}, inputs, bytes, p.log_prob, stream);
  });
}

void bernoulli_log_prob_backward(const BernoulliLogProbBackward& p, void* stream) {
  with_types(p.plan.dtype, p.x_type, [&](auto type, auto x) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 3>("bernoulli_log_prob_backward", p.plan, Backward<Stored, decltype(x)>{p}, p.grad_input,
                                    stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

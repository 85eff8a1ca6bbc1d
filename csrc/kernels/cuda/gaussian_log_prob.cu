#include "kernels/gaussian_log_prob.h"

#include "kernels/cuda/row_loops.cuh"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

template <class Stored, bool kMean, bool kLogVar>
struct Forward {
  GaussianLogProb p;

  using R = Real<Stored>;
  using Sum = PlainSum<R>;

  template <int V>
  __device__ __forceinline__ void add(Sum& own, const int64_t* offset, int64_t d) const {
    R x[V], mean[V] = {}, log_var[V] = {};
    load_pack<Stored>(p.x, offset[0] + d, x);
    if constexpr (kMean) load_pack<Stored>(p.mean, offset[1] + d, mean);
    if constexpr (kLogVar) load_pack<Stored>(p.log_var, offset[2] + d, log_var);
    R sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum += kLogVar ? deviance(x[v], mean[v], log_var[v]) : (x[v] - mean[v]) * (x[v] - mean[v]);
    }
    own.sum += sum;
  }
  __device__ R finish(R sum, int64_t dim) const { return R(-0.5) * (sum + R(dim) * R(kLog2Pi)); }
};

template <class Stored>
struct Backward {
  GaussianLogProbBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[3]) const {
    using R = Real<Stored>;
    const R grad = load<Stored>(p.grad, offset[3]);
    const LogProbGradients<R> g =
        log_prob_gradients(load<Stored>(p.input[0], offset[0] + d), p.input[1] ? load<Stored>(p.input[1], offset[1] + d) : R(0),
                           p.input[2] ? load<Stored>(p.input[2], offset[2] + d) : R(0));
    sum[0] += grad * g.x;
    sum[1] += grad * g.mean;
    sum[2] += grad * g.log_var;
  }
};

}  // namespace

namespace cuda {

void gaussian_log_prob(const GaussianLogProb& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    const void* inputs[] = {p.x, p.mean, p.log_var};
    const int bytes[] = {sizeof(Stored), sizeof(Stored), sizeof(Stored)};
    const auto launch = [&](auto body) {
      launch_sum_rows<Stored, 3>("gaussian_log_prob", p.plan, body, inputs, bytes, p.log_prob, stream);
    };
    if (p.mean) return p.log_var ? launch(Forward<Stored, true, true>{p}) : launch(Forward<Stored, true, false>{p});
    return p.log_var ? launch(Forward<Stored, false, true>{p}) : launch(Forward<Stored, false, false>{p});
  });
}

void gaussian_log_prob_backward(const GaussianLogProbBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 4>("gaussian_log_prob_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

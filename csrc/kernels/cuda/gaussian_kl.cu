#include "kernels/cuda/row_loops.cuh"
#include "kernels/gaussian_kl.h"
#include "math/gaussian.h"

namespace dgmfast {
namespace {

template <class Stored, bool kMean, bool kLogVar>
struct Forward {
  GaussianKl p;

  using R = Real<Stored>;
  using Sum = PlainSum<R>;

  template <int V>
  __device__ __forceinline__ void add(Sum& own, const int64_t* offset, int64_t d) const {
    R mean_q[V], log_var_q[V], mean_p[V] = {}, log_var_p[V] = {};
    load_pack<Stored>(p.mean_q, offset[0] + d, mean_q);
    load_pack<Stored>(p.log_var_q, offset[1] + d, log_var_q);
    if constexpr (kMean) load_pack<Stored>(p.mean_p, offset[2] + d, mean_p);
    if constexpr (kLogVar) load_pack<Stored>(p.log_var_p, offset[3] + d, log_var_p);
    R sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum += kLogVar ? twice_kl(mean_q[v], log_var_q[v], mean_p[v], log_var_p[v])
                     : twice_kl_standard(mean_q[v] - mean_p[v], log_var_q[v]);
    }
    own.sum += sum;
  }
  __device__ R finish(R sum, int64_t) const { return sum / 2; }
};

template <class Stored>
struct Backward {
  GaussianKlBackward p;

  __device__ void operator()(const int64_t* offset, int64_t d, Real<Stored> (&sum)[4]) const {
    using R = Real<Stored>;
    const R grad = load<Stored>(p.grad, offset[4]);
    const KlGradients<R> g = kl_gradients(load<Stored>(p.input[0], offset[0] + d), load<Stored>(p.input[1], offset[1] + d),
                                          p.input[2] ? load<Stored>(p.input[2], offset[2] + d) : R(0),
                                          p.input[3] ? load<Stored>(p.input[3], offset[3] + d) : R(0));
    sum[0] += grad * g.mean_q;
    sum[1] += grad * g.log_var_q;
    sum[2] += grad * g.mean_p;
    sum[3] += grad * g.log_var_p;
  }
};

}  // namespace

namespace cuda {

void gaussian_kl(const GaussianKl& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    const void* inputs[] = {p.mean_q, p.log_var_q, p.mean_p, p.log_var_p};
    const int bytes[] = {sizeof(Stored), sizeof(Stored), sizeof(Stored), sizeof(Stored)};
    const auto launch = [&](auto body) { launch_sum_rows<Stored, 4>("gaussian_kl", p.plan, body, inputs, bytes, p.kl, stream); };
    if (p.mean_p) return p.log_var_p ? launch(Forward<Stored, true, true>{p}) : launch(Forward<Stored, true, false>{p});
    return p.log_var_p ? launch(Forward<Stored, false, true>{p}) : launch(Forward<Stored, false, false>{p});
  });
}

void gaussian_kl_backward(const GaussianKlBackward& p, void* stream) {
  with_stored_type(p.plan.dtype, [&](auto type) {
    using Stored = decltype(type);
    launch_sum_gradients<Stored, 5>("gaussian_kl_backward", p.plan, Backward<Stored>{p}, p.grad_input, stream);
  });
}

}  // namespace cuda
}  // namespace dgmfast

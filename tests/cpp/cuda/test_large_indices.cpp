// Tests indices beyond 2^31. The memory is sparse, and only the last blocks of each grid are run.
#include <sys/mman.h>

#include "cuda/stored.h"
#include "geometry.h"
#include "kernels/bernoulli_log_prob.h"
#include "kernels/label_linear.h"

using namespace dgmfast;
using namespace geometry;

namespace {

struct Sparse {
  size_t bytes;
  char* base;
  explicit Sparse(size_t bytes)
      : bytes(bytes),
        base(static_cast<char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    CHECK(base != MAP_FAILED);
  }
  ~Sparse() { munmap(base, bytes); }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(base);
  }
};

}  // namespace

TEST(more_than_2_to_the_31) {
  constexpr int64_t dim = 784, rows = (int64_t(1) << 33) / dim + 5;
  Sparse x(rows * dim), logits(rows * dim * 2), out(rows * 2), grads(rows * dim * 2), upstream(rows * 2);
  RowPlan plan;
  plan.dim = dim, plan.dtype = DType::bf16;
  plan.outer.dims = 1, plan.outer.rows = plan.outer.size[0] = rows;
  plan.outer.stride[0][0] = plan.outer.stride[1][0] = dim, plan.outer.stride[2][0] = 1;
  for (int64_t d = 0; d < dim; ++d)
    x.as<uint8_t>()[(rows - 1) * dim + d] = 1, write(DType::bf16, logits.base, (rows - 1) * dim + d, 1.0);
  write(DType::bf16, upstream.base, rows - 1, 2.0);
  emu::only_blocks((rows + 7) / 8 - 1, ~uint64_t(0));
  cuda::bernoulli_log_prob(BernoulliLogProb{plan, DType::u8, logits.base, x.base, out.base}, nullptr);
  CHECK(std::fabs(read(DType::bf16, out.base, rows - 1) + 784 * 0.31326) < 2);
  emu::only_blocks((rows * dim + 255) / 256 - 1, ~uint64_t(0));
  BernoulliLogProbBackward p{plan, DType::u8, {logits.base, x.base}, upstream.base, {grads.base, nullptr}};
  cuda::bernoulli_log_prob_backward(p, nullptr);
  CHECK(std::fabs(read(DType::bf16, grads.base, rows * dim - 1) - 2 * 0.2689) < 0.01);
  // label_linear: [rows, 1, dim] + [labels, dim], with rows · labels · dim beyond 2^33
  const int64_t labels = 2, half = rows / 2;
  Sparse shared(half * dim * 2);
  std::vector<unsigned char> by_label(labels * dim * 2);
  for (int64_t i = 0; i < labels * dim; ++i) write(DType::bf16, by_label.data(), i, 3.0);
  write(DType::bf16, shared.base, half * dim - 1, 1.0);
  emu::only_blocks((half * dim + 255) / 256 - 1, ~uint64_t(0));
  cuda::label_linear(LabelLinear{labels, dim, half, DType::bf16, Activation::identity, shared.base, by_label.data(), grads.base},
                     nullptr);
  CHECK(read(DType::bf16, grads.base, half * labels * dim - 1) == 4.0);
  emu::only_blocks(0, ~uint64_t(0));
}

#include "kernels/gaussian_sample.h"

#include "kernels/cpu/row_loops.h"
#include "math/gaussian.h"
#include "math/philox.h"

namespace dgmfast {
namespace {

// Draws the noise of one row, kNoiseGroup dimensions at a time.
class RowNoise {
 public:
  RowNoise(const NoiseKey& key, int64_t index)
      : low_(uint32_t(key.seed)),
        high_(uint32_t(uint64_t(key.seed) >> 32)),
        sample_(key.first_sample + uint32_t(index % key.samples)),
        row_(key.first_row + uint32_t(index / key.samples)),
        stream_(key.stream) {}

  // Draws the dimensions [first, first + count), where first is a multiple of kNoiseGroup and count at most kNoiseGroup.
  template <class T>
  void draw(int64_t first, int64_t count, T (&noise)[kNoiseGroup]) const {
    const uint32_t word = uint32_t(first / kNoiseGroup * kLanes);
    const int lanes = int(minimum(count, int64_t(kLanes)));
    const uint32_t low = low_, high = high_, sample = sample_, row = row_, stream = stream_;
#pragma omp simd
    for (int j = 0; j < lanes; ++j) {
      const Normals<T> n = normals<T>({word + uint32_t(j), sample, row, stream}, low, high);
      noise[j] = n.a;
      noise[j + kLanes] = n.b;
      noise[j + 2 * kLanes] = n.c;
      noise[j + 3 * kLanes] = n.d;
    }
  }

 private:
  uint32_t low_, high_, sample_, row_, stream_;
};

template <class T>
void forward(const GaussianSample& p, int64_t begin, int64_t end) {
  const int64_t dim = p.plan.dim;
  Cursor row(p.plan.outer, 2, begin);
  T noise[kNoiseGroup];
  for (int64_t r = begin; r < end; ++r, row.next()) {
    const RowNoise source(p.key, r);
    T total = 0, sum = 0;
    for (int64_t first = 0; first < dim; first += kNoiseGroup) {
      if (first % kSumBlock == 0) {
        total += sum;
        sum = 0;
      }
      const int64_t count = minimum(dim - first, int64_t(kNoiseGroup));
      const T* mean = static_cast<const T*>(p.mean) + row.offset(0) + first;
      const T* log_var = static_cast<const T*>(p.log_var) + row.offset(1) + first;
      T* z = static_cast<T*>(p.z) + r * dim + first;
      source.draw(first, count, noise);
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < count; ++d) {
        z[d] = mean[d] + exp(T(0.5) * log_var[d]) * noise[d];
        sum += log_var[d] + noise[d] * noise[d];
      }
    }
    static_cast<T*>(p.log_q)[r] = T(-0.5) * (total + sum + T(dim) * T(kLog2Pi));
  }
}

template <class T>
void backward(const GaussianSampleBackward& p, int64_t begin, int64_t end) {
  static_assert(kColumns % kNoiseGroup == 0);
  gradient_rows<T>(p.plan, 5, p.grad_input, begin, end, [&](const int64_t* offset, int64_t column, int64_t count, T* const* out) {
    const RowNoise source(p.key, offset[4]);
    const T* log_var = static_cast<const T*>(p.log_var) + offset[1] + column;
    const T* grad_z = static_cast<const T*>(p.grad_z) + offset[2] + column;
    const T grad_log_q = static_cast<const T*>(p.grad_log_q)[offset[3]];
    T noise[kNoiseGroup];
    for (int64_t first = 0; first < count; first += kNoiseGroup) {
      const int64_t last = minimum(first + kNoiseGroup, count);
      source.draw(column + first, last - first, noise);
      T *grad_mean = out[0], *grad_log_var = out[1];
#pragma omp simd
      for (int64_t c = first; c < last; ++c) {
        grad_mean[c] = grad_z[c];
        grad_log_var[c] = T(0.5) * (grad_z[c] * exp(T(0.5) * log_var[c]) * noise[c - first] - grad_log_q);
      }
    }
  });
}

}  // namespace

namespace cpu::DGMFAST_ISA {

void gaussian_sample(const GaussianSample& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { forward<decltype(type)>(p, begin, end); });
}

void gaussian_sample_backward(const GaussianSampleBackward& p, int64_t begin, int64_t end) {
  with_float_type(p.plan.dtype, [&](auto type) { backward<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

// Cuts [B, K] into blocks whose matrix products stay in cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>

namespace dgmfast {

using at::Tensor;

// Samples [k, k + samples) of rows [b, b + rows). A block of several rows holds all their samples, so that its memory is
// contiguous.
struct Block {
  int64_t b, rows, k, samples;
  int64_t size() const { return rows * samples; }
};

// [B, K] cut into blocks of nearly equal size. The blocks do not depend on the number of threads.
class Blocks {
 public:
  Blocks(int64_t rows, int64_t samples, int64_t limit) : rows_(rows), samples_(samples), parts_((samples + limit - 1) / limit) {
    if (parts_ > 1) {
      groups_ = rows;
      return;
    }
    const int64_t group = limit / samples, least = (rows + group - 1) / group;
    // rounded up so that 2, 4 or 8 threads get equal shares
    groups_ = std::min<int64_t>(rows, least <= 8 ? std::bit_ceil(uint64_t(least)) : (least + 7) / 8 * 8);
  }

  int64_t count() const { return groups_ * parts_; }
  int64_t largest() const { return ((rows_ + groups_ - 1) / groups_) * ((samples_ + parts_ - 1) / parts_); }
  Block operator[](int64_t i) const {
    const int64_t group = i / parts_, part = i % parts_;
    const int64_t b = rows_ * group / groups_, k = samples_ * part / parts_;
    return {b, rows_ * (group + 1) / groups_ - b, k, samples_ * (part + 1) / parts_ - k};
  }

 private:
  int64_t rows_, samples_, parts_, groups_;
};

// A block of [B, K] and, as rows [size, …], a block of a contiguous [B, K, …].
inline Tensor part(const Tensor& all, const Block& b) { return all.narrow(0, b.b, b.rows).narrow(1, b.k, b.samples); }
inline Tensor rows_of(const Tensor& all, const Block& b) { return part(all, b).view({b.size(), all.size(2)}); }

// Returns [B, K, …] unchanged, and [B, …] as [B, 1, …]. h tells whether there is a dimension of samples.
inline Tensor with_samples(const Tensor& t, const Tensor& h) { return h.dim() == 2 ? t.unsqueeze(1) : t; }

}  // namespace dgmfast

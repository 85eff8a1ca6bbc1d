// Tests the masked convolution and its gradients on every instruction set, against loops over all taps.
#include "geometry.h"

#include "kernels/masked_conv2d.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

struct Problem {
  MaskedTaps taps;
  int64_t batch, height, width;
};
// outputs, inputs, kh, kw, unmasked, colors, self; N, H, W
const std::vector<Problem> kProblems = {{{5, 3, 3, 3, 0, 1, true}, 2, 6, 7},     {{6, 9, 3, 3, 0, 3, false}, 2, 5, 9},
                                        {{6, 8, 5, 3, 2, 3, true}, 3, 7, 5},     {{4, 2, 3, 5, 2, 1, false}, 1, 4, 18},
                                        {{1, 1, 1, 1, 0, 1, true}, 1, 1, 1},     {{3, 3, 1, 1, 0, 1, false}, 2, 3, 4},
                                        {{7, 1, 7, 7, 0, 1, false}, 2, 11, 3},   {{1, 40, 3, 3, 0, 1, true}, 1, 9, 8},
                                        {{13, 45, 3, 3, 1, 1, true}, 1, 40, 41}, {{4, 0, 3, 3, 0, 1, true}, 1, 3, 3}};

// Images [N, C, H, W], which are stored in this order or as [N, H, W, C].
template <class T>
struct Images {
  int64_t channels, height, width;
  int64_t stride[4];
  std::vector<T> data;

  Images(const Problem& p, int64_t channels, bool channels_last, uint64_t seed)
      : channels(channels), height(p.height), width(p.width), data(p.batch * channels * p.height * p.width) {
    Random random(seed);
    for (T& x : data) x = T(random.between(-1, 1));
    const int64_t image = channels * height * width;
    const int64_t first[4] = {image, height * width, width, 1}, last[4] = {image, 1, width * channels, channels};
    std::copy_n(channels_last ? last : first, 4, stride);
  }
  int64_t index(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3];
  }
};

// Calls body(n, h, w, row, column, output, input, tap) for every product in the convolution.
template <class Body>
void for_each_product(const Problem& p, Body body) {
  const MaskedTaps& t = p.taps;
  for (int64_t o = 0; o < t.outputs; ++o) {
    for (int64_t i = 0; i < t.inputs; ++i) {
      for (int64_t tap = 0; tap < t.all(); ++tap) {
        const int64_t down = tap / t.columns - t.rows / 2, right = tap % t.columns - t.columns / 2;
        const int64_t group_in = i < t.unmasked ? 0 : (i - t.unmasked) * t.colors / t.masked();
        const int64_t group_out = o * t.colors / t.outputs;
        const bool before = down < 0 || (down == 0 && right < 0), centre = down == 0 && right == 0;
        if (!(i < t.unmasked || before || (centre && (t.self ? group_in <= group_out : group_in < group_out)))) continue;
        for (int64_t n = 0; n < p.batch; ++n) {
          for (int64_t h = 0; h < p.height; ++h) {
            for (int64_t w = 0; w < p.width; ++w) {
              const int64_t row = h + down, column = w + right;
              if (row >= 0 && row < p.height && column >= 0 && column < p.width) body(n, h, w, row, column, o, i, tap);
            }
          }
        }
      }
    }
  }
}

template <class T>
std::vector<T> numbers(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<T> result(n);
  for (T& x : result) x = T(random.between(-1, 1));
  return result;
}

template <class T>
void run_convolution(MaskedConv2d p, const Images<T>& x, Images<T>& out) {
  p.dtype = dtype_of<T>(), p.x = x.data.data(), p.out = out.data.data();
  std::copy_n(x.stride, 4, p.x_stride), std::copy_n(out.stride, 4, p.out_stride);
  std::vector<T> packed(p.out_channels() * p.entries());
  p.packed = packed.data();
  run(cpu::masked_conv2d_pack, p, p.out_channels());
  std::vector<int64_t> scratch(p.scratch_bytes() / 8 + 1, -1);  // -1 is NaN: memory that is read must have been written before
  p.scratch = scratch.data();
  run(cpu::masked_conv2d, p, p.batch * p.bands);
}

template <class T>
void both_ways(const Problem& problem, bool channels_last, int64_t bands, int64_t chunk) {
  const MaskedTaps& t = problem.taps;
  Images<T> x(problem, t.inputs, channels_last, 1), grad(problem, t.outputs, channels_last, 2);
  Images<T> out(problem, t.outputs, channels_last, 3), grad_x(problem, t.inputs, !channels_last, 4);
  const std::vector<T> weight = numbers<T>(t.outputs * t.inputs * t.all(), 5), bias = numbers<T>(t.outputs, 6);
  MaskedConv2d p{};
  p.taps = t, p.batch = problem.batch, p.height = problem.height, p.width = problem.width, p.bands = bands, p.chunk = chunk;
  p.weight = weight.data(), p.bias = bias.data();
  run_convolution(p, x, out);
  p.transposed = true, p.bias = nullptr;
  run_convolution(p, grad, grad_x);

  std::vector<Long> exact(out.data.size()), exact_x(x.data.size()), exact_weight(weight.size());
  for_each_product(problem, [&](int64_t n, int64_t h, int64_t w, int64_t row, int64_t column, int64_t o, int64_t i, int64_t tap) {
    const int64_t at = (o * t.inputs + i) * t.all() + tap, here = out.index(n, o, h, w), there = x.index(n, i, row, column);
    exact[here] += Long(weight[at]) * x.data[there];
    exact_x[grad_x.index(n, i, row, column)] += Long(weight[at]) * grad.data[here];
    exact_weight[at] += Long(grad.data[here]) * x.data[there];
  });
  const int64_t pixels = problem.batch * problem.height * problem.width;
  for (int64_t o = 0; o < t.outputs; ++o) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t n = pixel / (problem.height * problem.width), h = pixel / problem.width % problem.height;
      const int64_t at = out.index(n, o, h, pixel % problem.width);
      CHECK(near(out.data[at], exact[at] + bias[o], t.entries()));
    }
  }
  for (size_t i = 0; i < grad_x.data.size(); ++i) CHECK(near(grad_x.data[i], exact_x[i], t.sources()));

  for (const auto& [group, parts] : {std::pair<int64_t, int64_t>{1, 1}, {2, 2}, {problem.batch, 100}}) {
    MaskedConv2dWeight q{};
    q.taps = t, q.dtype = dtype_of<T>(), q.batch = problem.batch, q.height = problem.height, q.width = problem.width;
    q.x = x.data.data(), q.grad = grad.data.data(), q.group = group, q.groups = (problem.batch + group - 1) / group;
    q.parts = std::min(parts, (t.outputs + kConvBlock - 1) / kConvBlock);
    std::copy_n(x.stride, 4, q.x_stride), std::copy_n(grad.stride, 4, q.grad_stride);
    std::vector<T> partial(q.groups * (t.entries() + 1) * t.outputs, T(NAN)), grad_weight(weight.size(), T(NAN)), sums(t.outputs);
    std::vector<int64_t> scratch(q.scratch_bytes() / 8 + 1, -1);
    q.partial = partial.data(), q.grad_weight = grad_weight.data(), q.grad_bias = sums.data(), q.scratch = scratch.data();
    run(cpu::masked_conv2d_weight, q, q.groups * q.parts);
    run(cpu::masked_conv2d_weight_sum, q, (t.outputs + kConvOutputs - 1) / kConvOutputs);
    for (size_t i = 0; i < weight.size(); ++i) {
      CHECK(near(grad_weight[i], exact_weight[i], pixels) && (exact_weight[i] != 0 || grad_weight[i] == 0));
    }
    for (int64_t o = 0; o < t.outputs; ++o) {
      Long sum = 0;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        const int64_t n = pixel / (problem.height * problem.width), h = pixel / problem.width % problem.height;
        sum += grad.data[grad.index(n, o, h, pixel % problem.width)];
      }
      CHECK(near(sums[o], sum, pixels));
    }
  }
}

template <class T>
void every_problem() {
  for (const Problem& problem : kProblems) {
    both_ways<T>(problem, false, 1, 960);
    both_ways<T>(problem, true, std::min<int64_t>(3, problem.height), 48);
  }
}

}  // namespace

TEST(masked_conv2d) {
  on_every_path([] { every_problem<float>(), every_problem<double>(); });
}

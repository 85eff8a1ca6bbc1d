// Tests the masked convolution of CUDA and its gradients against loops over all taps. The cases have more channels, pixels and
// entries than a tile, every stored type, both memory layouts, groups of pixels, and biases or none. Weights that the mask hides
// are NaN, and must not be read.
#include <cstdlib>

#include "cuda/stored.h"
#include "geometry.h"
#include "kernels/masked_conv2d.h"

using namespace dgmfast;
using namespace geometry;

namespace {

struct Problem {
  MaskedTaps taps;  // outputs, inputs, kh, kw, unmasked, colors, self
  int64_t batch, height, width;
};
const std::vector<Problem> kProblems = {
    {{5, 3, 3, 3, 0, 1, true}, 2, 6, 7},     {{6, 9, 3, 3, 0, 3, false}, 2, 5, 9},   {{6, 8, 5, 3, 2, 3, true}, 3, 7, 5},
    {{4, 2, 3, 5, 2, 1, false}, 1, 4, 18},   {{1, 1, 1, 1, 0, 1, true}, 1, 1, 1},    {{3, 3, 1, 1, 0, 1, false}, 2, 3, 4},
    {{7, 1, 7, 7, 0, 1, false}, 2, 11, 3},   {{1, 40, 3, 3, 0, 1, true}, 1, 9, 8},   {{13, 45, 3, 3, 1, 1, true}, 1, 10, 11},
    {{4, 0, 3, 3, 0, 1, true}, 1, 3, 3},     {{70, 66, 3, 3, 0, 1, true}, 1, 5, 14}, {{66, 69, 3, 3, 3, 2, false}, 2, 4, 9},
    {{65, 130, 1, 3, 66, 1, true}, 1, 3, 5}, {{64, 64, 3, 3, 0, 1, true}, 1, 8, 8},  {{128, 1, 7, 7, 0, 1, false}, 1, 9, 9},
    {{3, 3, 1, 1, 0, 3, false}, 1, 2, 3},    {{6, 67, 3, 3, 65, 2, true}, 1, 3, 4},  {{2, 2, 9, 3, 0, 2, true}, 2, 3, 2}};

struct Images {
  int64_t channels, height, width;
  int64_t stride[4];
  DType type;
  std::vector<unsigned char> data;
  std::vector<double> value;

  Images(const Problem& p, DType type, int64_t channels, bool channels_last, uint64_t seed)
      : channels(channels), height(p.height), width(p.width), type(type) {
    const int64_t n = p.batch * channels * p.height * p.width;
    data.resize(n * size_of(type)), value.resize(n);
    Random random(seed);
    for (int64_t i = 0; i < n; ++i) value[i] = write(type, data.data(), i, seed ? random.between(-1, 1) : double(NAN));
    const int64_t image = channels * height * width;
    const int64_t first[4] = {image, height * width, width, 1}, last[4] = {image, 1, width * channels, channels};
    std::copy_n(channels_last ? last : first, 4, stride);
  }
  int64_t index(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3];
  }
  double got(int64_t i) const { return read(type, data.data(), i); }
};

bool allowed(const MaskedTaps& t, int64_t o, int64_t i, int64_t tap) {
  const int64_t down = tap / t.columns - t.rows / 2, right = tap % t.columns - t.columns / 2;
  const int64_t group_in = i < t.unmasked ? 0 : (i - t.unmasked) * t.colors / t.masked(), group_out = o * t.colors / t.outputs;
  const bool before = down < 0 || (down == 0 && right < 0), centre = down == 0 && right == 0;
  return i < t.unmasked || before || (centre && (t.self ? group_in <= group_out : group_in < group_out));
}

bool close(DType type, double got, double exact, double size) {
  return std::fabs(got - exact) <= (type == DType::f64 ? 1e-14 : 3e-6) * (1 + size) + 1.01 * std::fabs(exact) *
                                                                                          (type == DType::f64   ? 0
                                                                                           : type == DType::f32 ? 0
                                                                                           : type == DType::f16 ? 9.8e-4
                                                                                                                : 7.9e-3);
}

void both_ways(const Problem& problem, DType type, bool channels_last) {
  const MaskedTaps& t = problem.taps;
  Images x(problem, type, t.inputs, channels_last, 1), grad(problem, type, t.outputs, !channels_last, 2);
  Images out(problem, type, t.outputs, channels_last, 0), grad_x(problem, type, t.inputs, !channels_last, 0);
  const int64_t weights = t.outputs * t.inputs * t.all();
  std::vector<unsigned char> weight(weights * size_of(type)), bias(t.outputs * size_of(type));
  std::vector<double> w(weights), b(t.outputs);
  Random random(5);
  for (int64_t at = 0; at < weights; ++at) {
    const bool seen = allowed(t, at / t.all() / t.inputs, at / t.all() % t.inputs, at % t.all());
    w[at] = write(type, weight.data(), at, seen ? random.between(-1, 1) : double(NAN));
  }
  for (int64_t o = 0; o < t.outputs; ++o) b[o] = write(type, bias.data(), o, random.between(-1, 1));

  MaskedConv2d p{};
  p.taps = t, p.batch = problem.batch, p.height = problem.height, p.width = problem.width, p.bands = 1, p.dtype = type;
  p.weight = weight.data(), p.bias = random.unit() < 0.8 ? bias.data() : nullptr;
  p.x = x.data.data(), p.out = out.data.data();
  std::copy_n(x.stride, 4, p.x_stride), std::copy_n(out.stride, 4, p.out_stride);
  if (!out.value.empty()) cuda::masked_conv2d(p, nullptr);
  const bool biased = p.bias;
  p.transposed = true, p.bias = nullptr, p.x = grad.data.data(), p.out = grad_x.data.data();
  std::copy_n(grad.stride, 4, p.x_stride), std::copy_n(grad_x.stride, 4, p.out_stride);
  if (!grad_x.value.empty()) cuda::masked_conv2d(p, nullptr);

  std::vector<double> exact(out.value.size()), exact_x(grad_x.value.size()), exact_weight(weights), sums(t.outputs);
  for (int64_t o = 0; o < t.outputs; ++o) {
    for (int64_t n = 0; n < problem.batch; ++n) {
      for (int64_t h = 0; h < problem.height; ++h) {
        for (int64_t v = 0; v < problem.width; ++v) {
          const int64_t here = out.index(n, o, h, v), up = grad.index(n, o, h, v);
          exact[here] = biased ? b[o] : 0;
          sums[o] += grad.value[up];
          for (int64_t i = 0; i < t.inputs; ++i) {
            for (int64_t tap = 0; tap < t.all(); ++tap) {
              const int64_t row = h + tap / t.columns - t.rows / 2, column = v + tap % t.columns - t.columns / 2,
                            at = (o * t.inputs + i) * t.all() + tap;
              if (row < 0 || row >= problem.height || column < 0 || column >= problem.width || std::isnan(w[at])) continue;
              const int64_t there = x.index(n, i, row, column);
              exact[here] += w[at] * x.value[there];
              exact_x[grad_x.index(n, i, row, column)] += w[at] * grad.value[up];
              exact_weight[at] += grad.value[up] * x.value[there];
            }
          }
        }
      }
    }
  }
  for (size_t i = 0; i < exact.size(); ++i) CHECK(close(type, out.got(i), exact[i], std::sqrt(double(t.entries()))));
  for (size_t i = 0; i < exact_x.size(); ++i) CHECK(close(type, grad_x.got(i), exact_x[i], std::sqrt(double(t.sources()))));

  const int64_t pixels = problem.batch * problem.height * problem.width;
  const DType real = type == DType::f64 ? DType::f64 : DType::f32;
  for (const int64_t group : {int64_t(256), int64_t(16), int64_t(37), int64_t(1)}) {
    if (group == 1 && pixels > 40) continue;
    MaskedConv2dWeight q{};
    q.taps = t, q.dtype = type, q.batch = problem.batch, q.height = problem.height, q.width = problem.width;
    q.x = x.data.data(), q.grad = grad.data.data(), q.group = group, q.groups = (pixels + group - 1) / group, q.parts = 1;
    std::copy_n(x.stride, 4, q.x_stride), std::copy_n(grad.stride, 4, q.grad_stride);
    std::vector<unsigned char> partial(q.groups * (t.entries() + 1) * t.outputs * size_of(real), 0xFF),
        grad_weight(weights * size_of(type), 0xFF), grad_bias(t.outputs * size_of(type), 0xFF);
    q.partial = partial.data(), q.grad_weight = grad_weight.data(), q.grad_bias = group == 16 ? nullptr : grad_bias.data();
    cuda::masked_conv2d_weight(q, nullptr);
    for (int64_t i = 0; i < weights; ++i) {
      const double got = read(type, grad_weight.data(), i);
      CHECK(close(type, got, exact_weight[i], std::sqrt(double(pixels))) && (!std::isnan(w[i]) || got == 0));
    }
    for (int64_t o = 0; o < t.outputs && q.grad_bias; ++o)
      CHECK(close(type, read(type, grad_bias.data(), o), sums[o], std::sqrt(double(pixels))));
  }
}

}  // namespace

TEST(cuda_masked_conv2d) {
  for (const auto schedule : {emu::Schedule::forward, emu::Schedule::reverse, emu::Schedule::random}) {
    emu::set_schedule(schedule);
    for (const Problem& problem : kProblems) {
      for (const DType type : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
        if (schedule != emu::Schedule::forward && type != DType::f32) continue;
        both_ways(problem, type, false);
        both_ways(problem, type, true);
      }
    }
  }
  emu::set_schedule(emu::Schedule::forward);
  CHECK(emu::counts().errors == 0);
  std::printf("  %lu launches, %lu threads, %lu barriers, %lu shuffles\n", emu::counts().launches, emu::counts().threads,
              emu::counts().barriers, emu::counts().shuffles);
}

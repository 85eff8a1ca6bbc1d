// Tests the kernel of a whole Bernoulli decoder on every instruction set. The cases have every number of outputs that a tile may
// leave over, rows that fill a tile of vectors or a part of one, and rows of x that the rows of a tile share or do not share.
#include "geometry.h"

#include "kernels/mlp_bernoulli_log_prob.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

template <class T>
struct Layer {
  Input<T> weight, bias;
  Layer(int64_t inputs, int64_t outputs, uint64_t seed)
      : weight({outputs, 1, inputs}, true, true, 0, seed, -1, 1), bias({1, 1, outputs}, true, true, 0, seed + 1, -1, 1) {}
};

template <class T, class X>
void decoder(const std::vector<int64_t>& widths, int64_t batch, int64_t samples, Activation activation) {
  const int64_t rows = batch * samples, dim = widths.back();
  const Input<T> h({rows, 1, widths[0]}, true, true, 0, 1, -1, 1);
  const Input<X> x({batch, 1, dim}, true, true, 3, 2, 0, 1);
  std::vector<Layer<T>> layers;
  MlpBernoulliLogProb p{};
  p.dtype = dtype_of<T>(), p.x_type = dtype_of<X>(), p.activation = activation, p.depth = int(widths.size()) - 1;
  for (int i = 0; i < p.depth; ++i) layers.emplace_back(widths[i], widths[i + 1], 10 + 2 * i);
  for (int i = 0; i < p.depth; ++i) {
    p.layer[i] = {widths[i], widths[i + 1], layers[i].weight.data.data(), layers[i].bias.data.data()};
  }
  std::vector<T> log_prob(rows);
  std::vector<char> scratch(p.scratch_bytes());
  p.samples = samples, p.h = h.data.data(), p.x = x.data.data(), p.x_stride = x.outer_stride;
  p.log_prob = log_prob.data(), p.scratch = scratch.data();
  run(cpu::mlp_bernoulli_log_prob, p, rows);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<Long> value(h.row(r), h.row(r) + widths[0]);
    Long sum = 0, size = 0;
    for (int i = 0; i < p.depth; ++i) {
      std::vector<Long> made;
      for (int64_t o = 0; o < widths[i + 1]; ++o) {
        Long a = layers[i].bias.data[o];
        for (int64_t k = 0; k < widths[i]; ++k) a += value[k] * layers[i].weight.row(o)[k];
        made.push_back(i + 1 < p.depth ? exact_activation(activation, a) : a);
      }
      value = made;
    }
    for (int64_t d = 0; d < dim; ++d) {
      const Long l = value[d];
      sum += Long(x.row(r / samples)[d]) * l - (l > 0 ? l : 0) - std::log1p(std::exp(-std::fabs(l)));
      size += std::fabs(l) + 1;
    }
    CHECK(near(log_prob[r], sum, size, 40));
  }
}

template <class T, class X>
void decoders() {
  for (int64_t dim = 1; dim <= 14; ++dim) decoder<T, X>({5, dim}, 3, 3, Activation::identity);
  for (const int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 100}) {
    decoder<T, X>({3, 13, 17}, rows, 1, Activation::tanh);
    decoder<T, X>({3, 13, 17}, 1, rows, Activation::relu);
  }
  for (const int64_t samples : {2, 5, 16, 33}) decoder<T, X>({4, 6, 5, 31}, 4, samples, Activation::leaky_relu);
  for (const int64_t dim : {119, 120, 121, 240, 244, 784}) decoder<T, X>({20, 11, dim}, 2, 4, Activation::softplus);
  decoder<T, X>({0, 4, 7}, 3, 2, Activation::elu);
  decoder<T, X>({2, 0, 7}, 3, 2, Activation::elu);
  decoder<T, X>(std::vector<int64_t>(kMaxMlpLayers + 1, 7), 2, 3, Activation::elu);
}

}  // namespace

TEST(mlp_bernoulli_log_prob) {
  on_every_path([] {
    decoders<float, float>(), decoders<double, double>();
    decoders<float, uint8_t>(), decoders<double, uint8_t>();
  });
}

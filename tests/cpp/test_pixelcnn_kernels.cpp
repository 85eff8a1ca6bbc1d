// Tests the drawing of images on every instruction set, against loops over the taps of whole images in long double.
#include <array>
#include <utility>

#include "geometry.h"

#include "kernels/pixelcnn_sample.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

struct Case {
  PixelKind kind;
  int64_t levels, groups, channels, height, width, images;
  std::vector<std::array<int64_t, 3>> kernels;  // rows, columns, outputs; the last layer's outputs follow from the kind
  bool keep, map;

  int64_t parameters() const { return kind == PixelKind::bernoulli ? 1 : kind == PixelKind::logistic ? 2 : levels; }
  int64_t pixels() const { return channels * height * width; }
};

// A stack of layers with its arrays. The weight of a tap is a function of its position, so that the exact values need no packing.
template <class T>
struct Stack {
  const Case& c;
  std::vector<PixelLayer> layers;
  std::vector<std::vector<T>> weights, contexts;

  static T weight(int64_t layer, int64_t o, int64_t i, int64_t row, int64_t column) {
    return T(Random(layer + 17 * o + 1009 * i + 60013 * row + 700001 * column).between(-0.7, 0.7));
  }

  explicit Stack(const Case& c) : c(c) {
    int64_t inputs = c.channels;
    for (size_t i = 0; i < c.kernels.size(); ++i) {
      const auto [rows, columns, width] = c.kernels[i];
      const int64_t outputs = i + 1 < c.kernels.size() ? width : c.channels * c.parameters();
      PixelLayer layer{inputs,  outputs, c.groups, rows, columns, i > 0, i != 1, i > 0 && inputs == outputs,
                       nullptr, nullptr, 0,        0,    0,       0};
      weights.push_back(packed(layer, int64_t(i)));
      const bool map = c.map && i == 0;
      contexts.push_back(Input<T>({map ? c.images * c.height * c.width : 1, 1, outputs}, true, true, 0, i, -1, 1).data);
      if (map) layer.context_pixel = outputs, layer.context_image = outputs * c.height * c.width;
      layers.push_back(layer);
      inputs = outputs;
    }
    for (size_t i = 0; i < layers.size(); ++i) layers[i].weight = weights[i].data(), layers[i].context = contexts[i].data();
  }

  static std::vector<T> packed(const PixelLayer& layer, int64_t index) {
    std::vector<T> out(layer.weight_offset(layer.groups, kPanel<T>));
    const int64_t count = layer.outputs / layer.groups, above = layer.kernel_columns * layer.inputs;
    T* at = out.data();
    for (int64_t g = 0; g < layer.groups; ++g) {
      for (int64_t panel = 0; panel < layer.panels(kPanel<T>); ++panel) {
        for (int64_t k = 0; k < layer.depth(g); ++k) {
          const int64_t row = std::min(k / above, layer.kernel_rows / 2), rest = k - row * above;
          for (int64_t o = panel * kPanel<T>; o < (panel + 1) * kPanel<T>; ++o, ++at) {
            if (o < count) *at = weight(index, g * count + o, rest % layer.inputs, row, rest / layer.inputs);
          }
        }
      }
    }
    CHECK(at == out.data() + out.size());
    return out;
  }
};

// Computes the last layer's outputs at a pixel, by recursion over everything that it sees.
template <class T>
struct Truth {
  const Stack<T>& stack;
  const std::vector<T>& image;  // one image, [C, H, W]
  int64_t index;

  Long value(int64_t layer, int64_t channel, int64_t y, int64_t x) const {  // the value h of a layer; 0 outside the image
    const Case& c = stack.c;
    if (y < 0 || x < 0 || x >= c.width) return 0;
    if (layer == 0) return image[(channel * c.height + y) * c.width + x];
    const PixelLayer& l = stack.layers[layer - 1];
    const int64_t group = channel / (l.outputs / l.groups);
    Long sum = stack.contexts[layer - 1][index * l.context_image + (y * c.width + x) * l.context_pixel + channel];
    for (int64_t row = 0; row <= l.kernel_rows / 2; ++row) {
      for (int64_t column = 0; column < l.kernel_columns; ++column) {
        const int64_t dy = row - l.kernel_rows / 2, dx = column - l.kernel_columns / 2;
        if (dy == 0 && dx > 0) continue;
        for (int64_t i = 0; i < l.inputs; ++i) {
          const int64_t other = i / (l.inputs / l.groups);
          if (dy == 0 && dx == 0 && (other > group || (other == group && !l.own_group))) continue;
          const Long h = value(layer - 1, i, y + dy, x + dx);
          sum += Stack<T>::weight(layer - 1, channel, i, row, column) * (l.relu ? std::fmax(h, 0.0L) : h);
        }
      }
    }
    return l.residual ? sum + value(layer - 1, channel, y, x) : sum;
  }
};

Long drawn(const Case& c, const std::vector<Long>& p, Long u, Long temperature) {
  if (c.kind == PixelKind::bernoulli) return u < 1 / (1 + std::exp(-p[0] / temperature));
  Long level = 0;
  if (c.kind == PixelKind::logistic) {
    const Long value = p[0] + temperature * std::exp(std::fmax(p[1], -7.0L)) * (std::log(u) - std::log1p(-u));
    level = std::fmin(std::fmax(std::nearbyint((value + 1) / 2 * (c.levels - 1)), 0.0L), Long(c.levels - 1));
  } else {
    Long total = 0, below = 0;
    for (const Long logit : p) total += std::exp(logit / temperature);
    for (; level < c.levels - 1; ++level) {
      if ((below += std::exp(p[int(level)] / temperature)) > u * total) break;
    }
  }
  return level / (c.levels - 1);
}

// Checks every pixel of the images, given the pixels before it.
template <class T>
void check_images(const Stack<T>& stack, const std::vector<double>& uniforms, const std::vector<T>& observed,
                  const std::vector<char>& keep, const std::vector<T>& images, double temperature) {
  const Case& c = stack.c;
  for (int64_t n = 0; n < c.images; ++n) {
    const std::vector<T> image(images.begin() + n * c.pixels(), images.begin() + (n + 1) * c.pixels());
    for (int64_t i = 0; i < c.pixels(); ++i) {
      const int64_t at = n * c.pixels() + i, channel = i / (c.height * c.width), y = i / c.width % c.height, x = i % c.width;
      if (c.keep && keep[at]) {
        CHECK(image[i] == observed[at]);
        continue;
      }
      std::vector<Long> p(c.parameters());
      for (int64_t j = 0; j < c.parameters(); ++j) {
        p[j] = Truth<T>{stack, image, n}.value(int64_t(stack.layers.size()), channel * c.parameters() + j, y, x);
      }
      CHECK(image[i] == T(double(drawn(c, p, uniforms[at], temperature))));
    }
  }
}

template <class T>
void draw(const Case& c) {
  Stack<T> stack(c);
  const int64_t all = c.images * c.pixels();
  constexpr double temperature = 1.3;
  const std::vector<double> uniforms = Input<double>({1, 1, all}, true, true, 0, 7, 0, 1).data;
  const std::vector<T> observed = Input<T>({1, 1, all}, true, true, 0, 8, 0, 1).data;
  std::vector<char> keep(all);
  Random random(9);
  for (char& k : keep) k = random.unit() < 0.3;

  int64_t size = 0, widest = 0;
  const auto take = [&](int64_t count) { return std::exchange(size, size + count); };
  for (PixelLayer& layer : stack.layers) {
    layer.ring = take(layer.rows() * layer.columns(c.width) * layer.inputs);
    layer.pixel = take(layer.inputs);
    widest = std::max(widest, layer.panels(kPanel<T>) * kPanel<T>);
  }
  const int64_t parameters = take(stack.layers.back().outputs), products = take(widest);
  std::vector<T> workspace(c.images * size), image(all);
  std::vector<double> weights(c.images * c.levels);
  PixelCnnSample p{c.channels,
                   c.height,
                   c.width,
                   0,
                   0,
                   dtype_of<T>(),
                   c.kind,
                   c.levels,
                   temperature,
                   stack.layers.data(),
                   int64_t(stack.layers.size()),
                   uniforms.data(),
                   observed.data(),
                   c.keep ? reinterpret_cast<const bool*>(keep.data()) : nullptr,
                   image.data(),
                   workspace.data(),
                   size,
                   parameters,
                   products,
                   weights.data()};
  for (const int64_t row : {int64_t(1), c.height}) {  // draws one row, then the others
    p.first_row = p.last_row, p.last_row = row;
    run(cpu::pixelcnn_sample, p, c.images);
  }
  check_images(stack, uniforms, observed, keep, image, temperature);
}

}  // namespace

TEST(pixelcnn_sample) {
  const std::vector<Case> cases{
      {PixelKind::bernoulli, 2, 1, 1, 4, 5, 13, {{7, 7, 5}, {3, 3, 5}, {1, 1, 0}}, false, false},
      {PixelKind::bernoulli, 2, 1, 1, 3, 3, 33, {{3, 3, 3}, {1, 1, 0}}, false, true},
      {PixelKind::categorical, 5, 3, 3, 3, 2, 4, {{3, 5, 6}, {1, 3, 6}, {3, 1, 0}}, true, true},
      {PixelKind::logistic, 256, 2, 4, 2, 3, 5, {{5, 3, 4}, {1, 3, 4}, {1, 1, 0}}, true, false},
      {PixelKind::categorical, 21, 1, 2, 1, 1, 1, {{1, 1, 70}, {1, 1, 0}}, false, false},
      {PixelKind::logistic, 2, 1, 1, 2, 2, 2, {{3, 3, 0}}, false, false},
  };
  on_every_path([&] {
    for (const Case& c : cases) draw<double>(c), draw<float>(c);
  });
}

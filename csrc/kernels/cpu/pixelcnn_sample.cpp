#include "kernels/pixelcnn_sample.h"

#include "kernels/cpu/row_loops.h"
#include "math/elementary.h"

namespace dgmfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kAccumulators = 24;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kAccumulators = 12;
#else
constexpr int kVectorBytes = 16, kAccumulators = 12;
#endif

constexpr int kVectors = kPanelBytes / kVectorBytes;                                     // vectors per panel
constexpr int kMaxImages = kAccumulators / kVectors < 6 ? kAccumulators / kVectors : 6;  // most images in one product
constexpr int64_t kBlock = 3 * kMaxImages;  // images that go through a layer together: the weights leave L2 once for all of them

template <class T>
using Vector __attribute__((vector_size(kVectorBytes))) = T;

template <class T>
DGMFAST_HOST_DEVICE Vector<T> load(const T* from) {
  Vector<T> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class T>
DGMFAST_HOST_DEVICE Vector<T> spread(T value) {
  return value - Vector<T>{};
}

// What a group of a layer's outputs reads at one pixel, in the ring of an image.
template <class T>
struct Window {
  int64_t rows, row_stride, first_row;  // of the ring; first_row is the topmost row
  int64_t column, above, own;           // offset in a row; number of inputs in a row above, and in the pixel's own row
  const T* weight;
  int64_t depth;
};

// Computes sum += input · weight for input k. The factor with fewer vectors is loaded first, because all of them would not fit in
// registers.
template <class T, int kImages, int kWide, int kPanels>
DGMFAST_HOST_DEVICE void accumulate(Vector<T> (&sum)[kImages][kWide], const T* const (&weight)[kPanels],
                                    const T* const (&input)[kImages], int64_t k) {
  constexpr int kLanes = kVectorBytes / int(sizeof(T));
  if constexpr (kWide <= kImages) {
    Vector<T> factor[kWide];
    DGMFAST_UNROLL
    for (int v = 0; v < kWide; ++v) factor[v] = load(weight[v / kVectors] + v % kVectors * kLanes);
    DGMFAST_UNROLL
    for (int m = 0; m < kImages; ++m) {
      const Vector<T> value = spread(input[m][k]);
      DGMFAST_UNROLL
      for (int v = 0; v < kWide; ++v) sum[m][v] += value * factor[v];
    }
  } else {
    Vector<T> value[kImages];
    DGMFAST_UNROLL
    for (int m = 0; m < kImages; ++m) value[m] = spread(input[m][k]);
    DGMFAST_UNROLL
    for (int v = 0; v < kWide; ++v) {
      const Vector<T> factor = load(weight[v / kVectors] + v % kVectors * kLanes);
      DGMFAST_UNROLL
      for (int m = 0; m < kImages; ++m) sum[m][v] += value[m] * factor;
    }
  }
}

// Computes kImages images × kPanels panels in registers. Each output is summed over the inputs in their order, whatever the
// counts, so that an image's bits do not depend on the other images.
template <class T, int kImages, int kPanels>
// Not inlined, because its pointers would not stay in registers. UBSan is off, because with both sanitizers it takes minutes to
// compile.
__attribute__((noinline, no_sanitize("undefined"))) void multiply(const Window<T>& window, const T* const* rings, int64_t panel,
                                                                  T* const* out) {
  constexpr int kWide = kPanels * kVectors, kLanes = kVectorBytes / int(sizeof(T));
  Vector<T> sum[kImages][kWide];
  DGMFAST_UNROLL
  for (int m = 0; m < kImages; ++m) {
    DGMFAST_UNROLL
    for (int v = 0; v < kWide; ++v) sum[m][v] = Vector<T>{};
  }
  const T* weight[kPanels];
  DGMFAST_UNROLL
  for (int p = 0; p < kPanels; ++p) weight[p] = window.weight + (panel + p) * window.depth * kPanel<T>;
  int64_t row = window.first_row;
  for (int64_t r = 0; r < window.rows; ++r) {
    const int64_t offset = row * window.row_stride + window.column, count = r + 1 < window.rows ? window.above : window.own;
    const T* input[kImages];
    DGMFAST_UNROLL
    for (int m = 0; m < kImages; ++m) input[m] = rings[m] + offset;
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k) {
      accumulate<T>(sum, weight, input, k);
      DGMFAST_UNROLL
      for (int p = 0; p < kPanels; ++p) weight[p] += kPanel<T>;
    }
    row = row + 1 == window.rows ? 0 : row + 1;
  }
  DGMFAST_UNROLL
  for (int m = 0; m < kImages; ++m) {
    DGMFAST_UNROLL
    for (int v = 0; v < kWide; ++v) __builtin_memcpy(out[m] + panel * kPanel<T> + v * kLanes, &sum[m][v], sizeof(Vector<T>));
  }
}

template <class T, int kPanels, int kImages = kMaxImages>
void multiply_images(int64_t images, const Window<T>& window, const T* const* rings, int64_t panel, T* const* out) {
  if constexpr (kImages * kPanels * kVectors <= kAccumulators) {
    if (images == kImages) return multiply<T, kImages, kPanels>(window, rings, panel, out);
  }
  if constexpr (kImages > 1) multiply_images<T, kPanels, kImages - 1>(images, window, rings, panel, out);
}

// Splits the images of a block into parts whose sizes differ by at most one. With few images, more panels are computed at a time.
template <class T>
void multiply_block(int64_t images, const Window<T>& window, const T* const* rings, int64_t panels, T* const* out) {
  const int64_t parts = (images + kMaxImages - 1) / kMaxImages, largest = (images + parts - 1) / parts;
  const int64_t room = kAccumulators / (largest * kVectors);
  for (int64_t panel = 0; panel < panels;) {
    const int64_t left = minimum(room, panels - panel), wide = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (int64_t part = 0, first = 0; part < parts; ++part) {
      const int64_t count = images / parts + (part < images % parts);
      if (wide == 4) {
        multiply_images<T, 4>(count, window, rings + first, panel, out + first);
      } else if (wide == 2) {
        multiply_images<T, 2>(count, window, rings + first, panel, out + first);
      } else {
        multiply_images<T, 1>(count, window, rings + first, panel, out + first);
      }
      first += count;
    }
    panel += wide;
  }
}

// Returns x in [0, 1] for a level, which is clamped to [0, levels - 1]. NaN counts as level 0.
double on_grid(double level, int64_t levels) { return minimum(maximum(level, 0.0), double(levels - 1)) / double(levels - 1); }

double round_to_even(double a) { return (a + ExpLimits<double>::round) - ExpLimits<double>::round; }  // for |a| < 2^51

template <class T>
double draw_bernoulli(const T* parameters, double u, double temperature) {
  return u < sigmoid(double(parameters[0]) / temperature) ? 1.0 : 0.0;
}

// Draws the smallest level whose cumulative probability exceeds u.
template <class T>
double draw_categorical(const T* logits, double u, int64_t levels, double temperature, double* weights) {
  double top = -infinity<double>();
#pragma omp simd reduction(max : top)
  for (int64_t v = 0; v < levels; ++v) top = maximum(double(logits[v]), top);
#pragma omp simd
  for (int64_t v = 0; v < levels; ++v) weights[v] = exp_nonpositive((double(logits[v]) - top) / temperature);
  double total = 0, below = 0;
  for (int64_t v = 0; v < levels; ++v) total += weights[v];
  int64_t level = 0;
  for (; level < levels - 1; ++level) {
    below += weights[level];
    if (below > u * total) break;
  }
  return on_grid(double(level), levels);
}

// Draws the u-quantile of a logistic distribution with parameters (mean, log scale) on [-1, 1], rounded to the nearest level.
template <class T>
double draw_logistic(const T* parameters, double u, int64_t levels, double temperature) {
  constexpr double kLowestLogScale = -7.0;
  const double log_scale = double(parameters[1]) < kLowestLogScale ? kLowestLogScale : double(parameters[1]);
  const double logit = u > 0.0 ? log_positive(u) - log_positive(1.0 - u) : -infinity<double>();
  const double value = double(parameters[0]) + temperature * exp(log_scale) * logit;
  const double level = (value + 1.0) * 0.5 * double(levels - 1);
  return on_grid(round_to_even(minimum(maximum(level, -1.0), double(levels))), levels);
}

template <class T>
class Block {  // some images, which go through every step together
 public:
  Block(const PixelCnnSample& p, int64_t first, int64_t images) : p_(p), first_(first), images_(images) {
    for (int64_t m = 0; m < images; ++m) space_[m] = static_cast<T*>(p.workspace) + (first + m) * p.workspace_stride;
  }

  void run() {
    const int64_t groups = p_.layers[0].groups;
    for (int64_t y = p_.first_row; y < p_.last_row; ++y) {
      for (int64_t x = 0; x < p_.width; ++x) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t i = 0; i < p_.depth; ++i) {
            products(p_.layers[i], g, y, x);
            for (int64_t m = 0; m < images_; ++m) finish(i, g, y, x, m);
          }
          for (int64_t m = 0; m < images_; ++m) draw(g, y, x, m);
        }
      }
    }
  }

 private:
  const PixelCnnSample& p_;
  const int64_t first_, images_;
  T* space_[kBlock];

  void products(const PixelLayer& layer, int64_t g, int64_t y, int64_t x) {
    const T* rings[kBlock];
    T* out[kBlock];
    for (int64_t m = 0; m < images_; ++m) rings[m] = space_[m] + layer.ring, out[m] = space_[m] + p_.products;
    const Window<T> window{layer.rows(),
                           layer.columns(p_.width) * layer.inputs,
                           (y + 1) % layer.rows(),
                           x * layer.inputs,
                           layer.kernel_columns * layer.inputs,
                           layer.own_row(g),
                           static_cast<const T*>(layer.weight) + layer.weight_offset(g, kPanel<T>),
                           layer.depth(g)};
    multiply_block(images_, window, rings, layer.panels(kPanel<T>), out);
  }

  // Returns where a layer's ring holds its inputs at the pixel.
  T* in_ring(const PixelLayer& layer, int64_t y, int64_t x, int64_t m) const {
    const int64_t column = y % layer.rows() * layer.columns(p_.width) + x + layer.kernel_columns / 2;
    return space_[m] + layer.ring + column * layer.inputs;
  }

  // Adds the context and the residual, and passes the outputs of a group to the next layer.
  void finish(int64_t i, int64_t g, int64_t y, int64_t x, int64_t m) {
    const PixelLayer& layer = p_.layers[i];
    const bool last = i + 1 == p_.depth;
    const int64_t count = layer.outputs / layer.groups, begin = g * count;
    const T* product = space_[m] + p_.products;
    const T* context = static_cast<const T*>(layer.context) + (first_ + m) * layer.context_image +
                       (y * p_.width + x) * layer.context_pixel + begin;
    const T* before = space_[m] + layer.pixel + begin;
    T* after = space_[m] + (last ? p_.parameters : p_.layers[i + 1].pixel) + begin;
    if (layer.residual) {
#pragma omp simd
      for (int64_t o = 0; o < count; ++o) after[o] = product[o] + context[o] + before[o];
    } else {
#pragma omp simd
      for (int64_t o = 0; o < count; ++o) after[o] = product[o] + context[o];
    }
    if (!last) hand_on(p_.layers[i + 1], y, x, m, begin, count);
  }

  void hand_on(const PixelLayer& layer, int64_t y, int64_t x, int64_t m, int64_t begin, int64_t count) {
    const T* value = space_[m] + layer.pixel + begin;
    T* ring = in_ring(layer, y, x, m) + begin;
    const T lowest = layer.relu ? T(0) : -infinity<T>();
#pragma omp simd
    for (int64_t o = 0; o < count; ++o) ring[o] = value[o] < lowest ? lowest : value[o];
  }

  // Draws the pixel's channels that are in group g, or copies those that are observed.
  void draw(int64_t g, int64_t y, int64_t x, int64_t m) {
    const PixelLayer& layer = p_.layers[0];
    const int64_t count = p_.channels / layer.groups;
    T* pixel = space_[m] + layer.pixel;
    for (int64_t c = g * count; c < (g + 1) * count; ++c) {
      const int64_t at = (((first_ + m) * p_.channels + c) * p_.height + y) * p_.width + x;
      const bool kept = p_.keep && p_.keep[at];
      pixel[c] = kept ? static_cast<const T*>(p_.observed)[at] : T(drawn(c, at, m));
      static_cast<T*>(p_.image)[at] = pixel[c];
    }
    hand_on(layer, y, x, m, g * count, count);
  }

  double drawn(int64_t c, int64_t at, int64_t m) const {
    const T* parameters = space_[m] + p_.parameters;
    const double u = p_.uniforms[at];
    switch (p_.kind) {
      case PixelKind::bernoulli:
        return draw_bernoulli(parameters + c, u, p_.temperature);
      case PixelKind::categorical:
        return draw_categorical(parameters + c * p_.levels, u, p_.levels, p_.temperature, p_.weights + (first_ + m) * p_.levels);
      case PixelKind::logistic:
        return draw_logistic(parameters + c * 2, u, p_.levels, p_.temperature);
    }
    return 0.0;
  }
};

template <class T>
void sample(const PixelCnnSample& p, int64_t begin, int64_t end) {
  const int64_t images = end - begin, blocks = (images + kBlock - 1) / kBlock;
  for (int64_t block = 0, first = begin; block < blocks; ++block) {
    const int64_t count = images / blocks + (block < images % blocks);
    Block<T>(p, first, count).run();
    first += count;
  }
}

}  // namespace

namespace cpu::DGMFAST_ISA {

// An item is an image.
void pixelcnn_sample(const PixelCnnSample& p, int64_t begin, int64_t end) {
  with_float_type(p.dtype, [&](auto type) { sample<decltype(type)>(p, begin, end); });
}

}  // namespace cpu::DGMFAST_ISA
}  // namespace dgmfast

// Tests the kernels of models with labels on every instruction set: the sum over the labels, and the layer for every label.
#include "geometry.h"

#include "kernels/label_linear.h"
#include "kernels/marginalize_labels.h"

using namespace dgmfast;
using namespace geometry;

namespace {

using Long = long double;

struct Row {
  std::vector<Long> q, log_q;
  Long total = 0;  // Σ q (value - log q)
};

template <class T>
Row exact_row(const T* logits, const T* values, int64_t labels) {
  Row row;
  Long top = -std::numeric_limits<Long>::infinity(), sum = 0;
  for (int64_t y = 0; y < labels; ++y) top = std::fmax(top, Long(logits[y]));
  for (int64_t y = 0; y < labels; ++y) sum += std::exp(logits[y] - top);
  for (int64_t y = 0; y < labels; ++y) {
    row.log_q.push_back(logits[y] - top - std::log(sum)), row.q.push_back(std::exp(row.log_q[y]));
    row.total += row.q[y] * (values[y] - row.log_q[y]);
  }
  return row;
}

template <class T>
void labels_forward() {
  for (const int64_t labels : kSizes) {
    for (const double spread : {3.0, 1e4}) {
      const Shape s{labels > 1000 ? 2 : 5, 1, labels};
      const Input<T> logits(s, true, true, labels % 3, 1, -spread, spread), values(s, false, false, 0, 2, -110, -90);
      std::vector<T> bound(s.outer);
      const RowPlan plan = make_plan<T>(s, {&logits, &values});
      run(backend::marginalize_labels, MarginalizeLabels{plan, logits.data.data(), values.data.data(), bound.data(), nullptr},
          s.outer);
      for (int64_t r = 0; r < s.outer; ++r) {
        CHECK(near(bound[r], exact_row(logits.row(r), values.row(r), labels).total, 100, 4));
      }
    }
  }
}

template <class T>
void labels_backward() {
  for (const Shape s : {Shape{3, 1, 10}, Shape{37, 1, 32}, Shape{17, 1, 33}, Shape{2, 5, 17}, Shape{1, 130, 3}, Shape{2, 64, 257},
                        Shape{1, 1, 1}}) {
    const Input<T> logits(s, true, false, 1, 1, -4, 4), values(s, true, true, 0, 2, -103, -97),
        grad({s.outer, s.inner, 1}, true, true, 0, 3, -1, 1);
    // the sums of all rows, which the op computes first
    RowPlan rows = make_plan<T>({s.outer * s.inner, 1, s.dim}, {});
    rows.outer.dims = 2;
    rows.outer.size[0] = s.outer, rows.outer.size[1] = s.inner;
    rows.outer.stride[0][0] = logits.outer_stride, rows.outer.stride[0][1] = logits.inner_stride;
    rows.outer.stride[1][0] = values.outer_stride, rows.outer.stride[1][1] = values.inner_stride;
    std::vector<T> sums(s.outer * s.inner * kLabelSums);
    run(backend::marginalize_labels, MarginalizeLabels{rows, logits.data.data(), values.data.data(), nullptr, sums.data()},
        s.outer * s.inner);
    for (int wanted = 1; wanted < 4; ++wanted) {
      RowPlan plan = make_plan<T>(s, {&logits, &values, &grad});
      set_strides(plan, 3, s.inner, 1);
      std::vector<T> out[2];
      MarginalizeLabelsBackward p{plan, {logits.data.data(), values.data.data()}, grad.data.data(), sums.data(), {}};
      for (int i = 0; i < 2; ++i) {
        out[i].resize(wanted >> i & 1 ? s.outer * s.dim : 0);
        p.grad_input[i] = wanted >> i & 1 ? out[i].data() : nullptr;
      }
      run(backend::marginalize_labels_backward, p, gradient_items(plan));
      for (int64_t o = 0; o < s.outer; ++o) {
        std::vector<Long> sum[2] = {std::vector<Long>(s.dim), std::vector<Long>(s.dim)};
        for (int64_t i = 0; i < s.inner; ++i) {
          const Row row = exact_row(logits.row(o, i), values.row(o, i), s.dim);
          const Long g = *grad.row(o, i);
          for (int64_t y = 0; y < s.dim; ++y) {
            sum[0][y] += g * row.q[y] * (values.row(o, i)[y] - row.log_q[y] - row.total), sum[1][y] += g * row.q[y];
          }
        }
        for (int64_t y = 0; y < s.dim; ++y) {
          CHECK(!(wanted & 1) || near(out[0][o * s.dim + y], sum[0][y], s.inner));
          CHECK(!(wanted & 2) || near(out[1][o * s.dim + y], sum[1][y], s.inner));
        }
      }
    }
  }
}

const std::vector<Activation> kActivations = {Activation::identity, Activation::relu,     Activation::leaky_relu,
                                              Activation::tanh,     Activation::softplus, Activation::elu};

Long slope(Activation activation, Long out) {
  switch (activation) {
    case Activation::relu:
      return out > 0;
    case Activation::leaky_relu:
      return out > 0 ? 1 : 0.1L;
    case Activation::tanh:
      return 1 - out * out;
    case Activation::softplus:
      return out > 20 ? 1 : -std::expm1(-out);
    case Activation::elu:
      return out > 0 ? 1 : out + 1;
    default:
      return 1;
  }
}

struct Layer {
  int64_t rows, labels, dim;
};
const std::vector<Layer> kLayers = {{1, 1, 1},   {3, 10, 17}, {2, 3, 128}, {5, 2, 129},  {64, 1, 7},
                                    {65, 4, 33}, {130, 2, 5}, {2, 1, 784}, {1, 100, 16}, {3, 2, 257}};

template <class T>
void layer_both_ways() {
  for (const auto [rows, labels, dim] : kLayers) {
    const Shape all{rows, labels, dim}, one{rows, 1, dim};
    const Input<T> shared(one, true, false, 0, 1, -4, 4), label_weight({labels, 1, dim}, true, false, 0, 2, -4, 4),
        grad(all, true, true, 0, 3, -1, 1);
    for (const Activation activation : kActivations) {
      std::vector<T> out(rows * labels * dim);
      run(backend::label_linear,
          LabelLinear{labels, dim, rows, dtype_of<T>(), activation, shared.data.data(), label_weight.data.data(), out.data()},
          rows * labels);
      for (int64_t i = 0; i < int64_t(out.size()); ++i) {
        const int64_t h = i % dim, y = i / dim % labels, row = i / dim / labels;
        const T pre = shared.row(row)[h] + label_weight.row(y)[h];
        CHECK(near(out[i], exact_activation(activation, pre), pre, 2));
      }
      for (const int64_t segment : {rows, int64_t(64), int64_t(7)}) {
        for (int wanted = 1; wanted < 4; ++wanted) {
          LabelLinearBackward p{labels,           dim,        rows,    segment, dtype_of<T>(), activation,
                                grad.data.data(), out.data(), nullptr, nullptr};
          std::vector<T> by_row(wanted & 1 ? rows * dim : 0), by_label(wanted & 2 ? p.segments() * labels * dim : 0);
          p.grad_shared = wanted & 1 ? by_row.data() : nullptr;
          p.grad_label_weight = wanted & 2 ? by_label.data() : nullptr;
          run(backend::label_linear_backward, p, p.segments() * ((dim + kLabelColumns - 1) / kLabelColumns));
          std::vector<Long> row_sums(rows * dim), label_sums(p.segments() * labels * dim);
          for (int64_t i = 0; i < int64_t(out.size()); ++i) {
            const int64_t h = i % dim, y = i / dim % labels, row = i / dim / labels;
            const Long delta = grad.data[i] * slope(activation, out[i]);
            row_sums[row * dim + h] += delta, label_sums[(row / segment * labels + y) * dim + h] += delta;
          }
          for (size_t i = 0; i < by_row.size(); ++i) CHECK(near(by_row[i], row_sums[i], labels, 8));
          for (size_t i = 0; i < by_label.size(); ++i) CHECK(near(by_label[i], label_sums[i], segment, 8));
        }
      }
    }
  }
}

}  // namespace

TEST(marginalize_labels) {
  on_every_path([] { labels_forward<float>(), labels_forward<double>(); });
}
TEST(marginalize_labels_backward) {
  on_every_path([] { labels_backward<float>(), labels_backward<double>(); });
}
TEST(label_linear) {
  on_every_path([] { layer_both_ways<float>(), layer_both_ways<double>(); });
}

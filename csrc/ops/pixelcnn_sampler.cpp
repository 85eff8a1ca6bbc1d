#include "ops/pixelcnn_sampler.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/checks.h"

namespace dgmfast {
namespace {

constexpr const char* kName = "PixelCNNSampler";

PixelKind kind_of(const std::string& kind) {
  if (kind == "bernoulli") return PixelKind::bernoulli;
  if (kind == "categorical") return PixelKind::categorical;
  TORCH_CHECK_VALUE(kind == "logistic", kName, ": kind must be bernoulli, categorical or logistic; got '", kind, "'");
  return PixelKind::logistic;
}

int64_t parameters_per_pixel(PixelKind kind, int64_t levels) {
  return kind == PixelKind::bernoulli ? 1 : kind == PixelKind::logistic ? 2 : levels;
}

void check_same_shape(const char* name, const Tensor& t, const Tensor& uniforms) {
  TORCH_CHECK_VALUE(t.sizes() == uniforms.sizes(), kName, ": ", name, " must have the shape of uniforms, ", uniforms.sizes(),
                    "; got ", t.sizes());
}

void check_type(const char* name, const Tensor& t, at::ScalarType type) {
  TORCH_CHECK_TYPE(t.scalar_type() == type, kName, ": ", name, " must be ", type, "; got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.is_cpu(), kName, ": ", name, " must be on the CPU; got ", t.device());
}

void check_layer(size_t i, const Tensor& weight, const Tensor& context, bool residual, int64_t inputs, int64_t colors,
                 const Tensor& uniforms) {
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(1) == inputs && weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, kName,
                    ": weights[", i, "] must have shape [O, ", inputs, ", kh, kw] with odd kh and kw; got ", weight.sizes());
  const int64_t outputs = weight.size(0);
  TORCH_CHECK_VALUE(outputs > 0 && outputs % colors == 0 && inputs % colors == 0, kName,
                    ": colors must divide the channels of weights[", i, "], ", weight.sizes(), "; got ", colors);
  const bool map = context.dim() == 4 && context.size(0) == uniforms.size(0) && context.size(1) == outputs &&
                   context.size(2) == uniforms.size(2) && context.size(3) == uniforms.size(3);
  TORCH_CHECK_VALUE(map || (context.dim() == 1 && context.size(0) == outputs), kName, ": contexts[", i, "] must have shape [",
                    outputs, "] or [N, ", outputs, ", H, W] of uniforms, ", uniforms.sizes(), "; got ", context.sizes());
  TORCH_CHECK_VALUE(!residual || (i > 0 && inputs == outputs), kName,
                    ": residual needs a layer after the first with as many outputs as inputs; got weights[", i, "] of shape ",
                    weight.sizes());
}

// Packs a weight [O, I, kh, kw] as PixelLayer::weight describes.
template <class T>
void pack(const Tensor& weight, const PixelLayer& layer, T* out) {
  const auto w = weight.accessor<T, 4>();
  const int64_t count = layer.outputs / layer.groups, middle = layer.kernel_rows / 2, columns = layer.kernel_columns;
  for (int64_t g = 0; g < layer.groups; ++g) {
    T* group = out + layer.weight_offset(g, kPanel<T>);
    for (int64_t panel = 0; panel < layer.panels(kPanel<T>); ++panel) {
      for (int64_t k = 0; k < layer.depth(g); ++k, group += kPanel<T>) {
        const int64_t row = std::min(k / (columns * layer.inputs), middle), rest = k - row * columns * layer.inputs;
        for (int64_t lane = 0; lane < kPanel<T>; ++lane) {
          const int64_t o = panel * kPanel<T> + lane;
          group[lane] = o < count ? w[g * count + o][rest % layer.inputs][row][rest / layer.inputs] : T(0);
        }
      }
    }
  }
}

}  // namespace

PixelCnnSampler::PixelCnnSampler(const std::vector<Tensor>& weights, const std::vector<Tensor>& contexts,
                                 const std::vector<bool>& relu, const std::vector<bool>& residual, int64_t colors,
                                 const Output& output, const Tensor& uniforms, const OptionalTensor& observed,
                                 const OptionalTensor& keep) {
  const PixelKind kind = kind_of(output.kind);
  TORCH_CHECK_VALUE(output.levels >= 2, kName, ": levels must be at least 2; got ", output.levels);
  TORCH_CHECK_VALUE(output.temperature > 0, kName, ": temperature must be positive; got ", output.temperature);
  TORCH_CHECK_VALUE(uniforms.dim() == 4, kName, ": uniforms must have shape [N, C, H, W]; got ", uniforms.sizes());
  check_type("uniforms", uniforms, at::kDouble);
  TORCH_CHECK_VALUE(colors >= 1, kName, ": colors must be positive; got ", colors);
  const size_t depth = weights.size();
  TORCH_CHECK_VALUE(depth > 0, kName, ": weights must hold at least one layer; got none");
  TORCH_CHECK_VALUE(contexts.size() == depth && relu.size() == depth && residual.size() == depth, kName,
                    ": contexts, relu and residual must have one entry per layer, ", depth, "; got ", contexts.size(), ", ",
                    relu.size(), " and ", residual.size());
  check_floating(kName, {{{"weights[0]", &weights[0]}}});
  check_type("weights[0]", weights[0], weights[0].scalar_type());
  int64_t inputs = uniforms.size(1);
  for (size_t i = 0; i < depth; ++i) {
    check_type("weights", weights[i], weights[0].scalar_type());
    check_type("contexts", contexts[i], weights[0].scalar_type());
    check_layer(i, weights[i], contexts[i], residual[i], inputs, colors, uniforms);
    inputs = weights[i].size(0);
  }
  const int64_t expected = uniforms.size(1) * parameters_per_pixel(kind, output.levels);
  TORCH_CHECK_VALUE(inputs == expected, kName, ": the last of weights must have ", expected, " outputs, the parameters of ",
                    output.kind, " pixels; got ", inputs);
  TORCH_CHECK_VALUE(!pointer(observed) == !pointer(keep), kName, ": observed and keep go together; got one of them");
  if (pointer(keep)) {
    check_type("observed", *observed, weights[0].scalar_type());
    check_type("keep", *keep, at::kBool);
    check_same_shape("observed", *observed, uniforms);
    check_same_shape("keep", *keep, uniforms);
    observed_ = observed->contiguous(), keep_ = keep->contiguous();
  }

  uniforms_ = uniforms.contiguous();
  params_.channels = uniforms.size(1), params_.height = uniforms.size(2), params_.width = uniforms.size(3);
  params_.dtype = dtype_of(weights[0]), params_.kind = kind;
  params_.levels = output.levels, params_.temperature = output.temperature;
  layers_.reserve(depth);
  for (size_t i = 0; i < depth; ++i) {
    const Tensor& weight = weights[i];
    layers_.push_back({weight.size(1), weight.size(0), colors, weight.size(2), weight.size(3), i > 0, relu[i], residual[i]});
    add_arrays(layers_.back(), weight, contexts[i]);
  }
  lay_out(weights[0].options());
}

void PixelCnnSampler::add_arrays(PixelLayer& layer, const Tensor& weight, const Tensor& context) {
  const bool wide = weight.scalar_type() == at::kDouble;
  const int64_t panel = wide ? kPanel<double> : kPanel<float>;
  const Tensor packed = at::empty({layer.weight_offset(layer.groups, panel)}, weight.options().requires_grad(false));
  if (wide) {
    pack(weight, layer, packed.mutable_data_ptr<double>());
  } else {
    pack(weight, layer, packed.mutable_data_ptr<float>());
  }
  const bool map = context.dim() == 4;
  const Tensor by_pixel = (map ? context.permute({0, 2, 3, 1}) : context).contiguous();
  layer.weight = packed.const_data_ptr(), layer.context = by_pixel.const_data_ptr();
  layer.context_pixel = map ? layer.outputs : 0;
  layer.context_image = layer.context_pixel * params_.height * params_.width;
  held_.insert(held_.end(), {packed, by_pixel});
}

// Allocates the image and the workspaces, and sets the offsets of everything in a workspace.
void PixelCnnSampler::lay_out(const at::TensorOptions& like) {
  const at::TensorOptions options = like.requires_grad(false);
  const int64_t line = params_.dtype == DType::f64 ? kPanel<double> : kPanel<float>;
  int64_t size = 0;
  const auto take = [&](int64_t count) {
    const int64_t at = size;
    size += (count + line - 1) / line * line;
    return at;
  };
  int64_t widest = 0;
  for (PixelLayer& layer : layers_) {
    layer.ring = take(layer.rows() * layer.columns(params_.width) * layer.inputs);
    layer.pixel = take(layer.inputs);
    widest = std::max(widest, layer.panels(line) * line);
  }
  params_.parameters = take(layers_.back().outputs);
  params_.products = take(widest);
  if (size / line % 2 == 0) size += line;  // an odd number of cache lines, so that the images of a block do not share cache sets
  const int64_t images = uniforms_.size(0);
  workspace_ = at::zeros({images, size}, options);
  image_ = at::zeros(uniforms_.sizes(), options);
  levels_ = at::empty({images, params_.kind == PixelKind::categorical ? params_.levels : 0}, options.dtype(at::kDouble));

  params_.layers = layers_.data(), params_.depth = int64_t(layers_.size());
  params_.uniforms = uniforms_.const_data_ptr<double>();
  params_.observed = keep_.defined() ? observed_.const_data_ptr() : nullptr;
  params_.keep = keep_.defined() ? keep_.const_data_ptr<bool>() : nullptr;
  params_.image = image_.mutable_data_ptr();
  params_.workspace = workspace_.mutable_data_ptr(), params_.workspace_stride = size;
  params_.weights = levels_.mutable_data_ptr<double>();
}

void PixelCnnSampler::rows(int64_t begin, int64_t end) {
  TORCH_CHECK_VALUE(begin == params_.last_row && end >= begin && end <= params_.height, kName, ": rows must go on at ",
                    params_.last_row, " and end within ", params_.height, "; got ", begin, " to ", end);
  params_.first_row = begin, params_.last_row = end;
  at::parallel_for(0, uniforms_.size(0), 1, [&](int64_t first, int64_t last) { cpu::pixelcnn_sample(params_, first, last); });
}

}  // namespace dgmfast

// Draws images from a stack of causal convolutions. It holds the checks, the packed weights, and the state between rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/pixelcnn_sample.h"

namespace dgmfast {

class PixelCnnSampler {
 public:
  struct Output {
    std::string kind;  // bernoulli, categorical, logistic
    int64_t levels;
    double temperature;
  };

  // weights[i] is the weight [O, I, kh, kw] of layer i, of which only the taps that the mask allows are read. contexts[i] is
  // added to the layer's outputs, [O] or [N, O, H, W]. The first layer has mask A, the others have mask B. The weights are packed
  // here and not read again.
  PixelCnnSampler(const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& contexts, const std::vector<bool>& relu,
                  const std::vector<bool>& residual, int64_t colors, const Output& output, const at::Tensor& uniforms,
                  const std::optional<at::Tensor>& observed, const std::optional<at::Tensor>& keep);
  PixelCnnSampler(const PixelCnnSampler&) = delete;  // not copyable, because params_ points into layers_

  // Draws the rows [begin, end) of all images. `begin` must be where the last call ended.
  void rows(int64_t begin, int64_t end);

  const at::Tensor& image() const { return image_; }  // [N, C, H, W], zero where nothing was drawn yet

 private:
  void add_arrays(PixelLayer& layer, const at::Tensor& weight, const at::Tensor& context);
  void lay_out(const at::TensorOptions& like);

  std::vector<PixelLayer> layers_;
  std::vector<at::Tensor> held_;  // keeps alive what the layers point to
  at::Tensor uniforms_, observed_, keep_, image_, workspace_, levels_;
  PixelCnnSample params_{};
};

}  // namespace dgmfast

"""Samples from a PixelCNN with one full pass per pixel and channel: the reference for the tests, and the slow fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast.reference import masked_conv2d

if TYPE_CHECKING:
    from dgmfast.nn.masked_conv import CausalLayer
    from dgmfast.nn.pixel_output import PixelOutput


def causal_stack(layers: Sequence[CausalLayer], x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Apply h_{i+1} = conv_i(h_i or relu(h_i)) (+ h_i), starting from h_0 = x: [N, C, H, W] -> [N, O, H, W].

    `condition` is the unmasked input of the first layer.
    """
    h = x
    for layer in layers:
        conv = layer.conv
        seen = F.relu(h) if layer.relu else h
        if conv.unmasked_inputs:
            assert condition is not None
            seen = torch.cat([condition.to(h), seen], 1)
        convolved = masked_conv2d(seen, conv.weight, conv.bias, conv.mask, conv.colors, conv.unmasked_inputs)
        h = convolved + h if layer.residual else convolved
    return h


@torch.no_grad()
def pixelcnn_sample(
    layers: Sequence[CausalLayer],
    output: PixelOutput,
    uniforms: Tensor,
    condition: Tensor | None = None,
    observed: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`sample_pixels` with one pass over the whole image for each pixel and channel."""
    like = layers[0].conv.weight
    return pixels_by_passes(lambda x: causal_stack(layers, x, condition), like, output, uniforms, observed, keep, temperature)


def pixels_by_passes(
    parameters: Callable[[Tensor], Tensor],
    like: Tensor,
    output: PixelOutput,
    uniforms: Tensor,
    observed: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`pixelcnn_sample` for any network: parameters(x) maps x [N, C, H, W] to the parameters of all pixels, [N, C·P, H, W].

    The images get the dtype and the device of `like`. The other tensors must be on that device.
    """
    images, channels, height, width = uniforms.shape
    x = torch.zeros(uniforms.shape, dtype=like.dtype, device=like.device)
    kept = None if keep is None else keep.expand(uniforms.shape)
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                params = parameters(x)[:, :, i, j].view(images, channels, output.channels(1))
                drawn = output.draw(params[:, c], uniforms[:, c, i, j], temperature).to(x)
                if observed is not None and kept is not None:
                    drawn = torch.where(kept[:, c, i, j], observed[:, c, i, j].to(x), drawn)
                x[:, c, i, j] = drawn
        if progress is not None:
            progress(i + 1, height)
    return x

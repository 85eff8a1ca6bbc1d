"""PixelCNN sampling in plain PyTorch: the full pass per pixel of public code, and the best cached sampler that we could write.

Both draw binary images of one channel. They compare logits with log(u/(1−u)), where sample_pixels compares probabilities with u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast.nn import CausalLayer

Draw = Callable[[Sequence[CausalLayer], Tensor], Tensor]


@torch.inference_mode()
def full_passes(layers: Sequence[CausalLayer], uniforms: Tensor) -> Tensor:
    """Runs a pass over the whole image for every pixel. Hidden taps have zero weight, so an ordinary convolution is enough."""
    convs = [(layer, layer.conv.weight, layer.conv.bias) for layer in layers]
    thresholds = torch.logit(uniforms).to(convs[0][1].dtype)
    x = torch.zeros_like(thresholds)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            h = x
            for layer, weight, bias in convs:
                convolved = F.conv2d(F.relu(h) if layer.relu else h, weight, bias, padding="same")
                h = convolved.add_(h) if layer.residual else convolved
            x[:, :, i, j] = (h[:, :, i, j] > thresholds[:, :, i, j]).to(x.dtype)
    return x


class _Ring:
    """The last rows that a layer reads, [N, W + padding, rows, C]; all taps of a pixel are one slice of memory.

    The slice also covers cells to the right of the pixel in its own row, whose weights are zero. The order of its rows rotates
    with the row of the image. A pixel therefore takes one product per layer, with one of `rows` weight matrices, and no copy.
    """

    def __init__(self, layer: CausalLayer, count: int, width: int) -> None:
        weight = layer.conv.weight.detach()
        rows, columns = weight.shape[2] // 2 + 1, weight.shape[3]
        cells = weight.new_zeros(count, width + columns - 1, rows, weight.shape[1])
        by_tap = weight[:, :, :rows].permute(3, 2, 1, 0)  # [kw, rows, I, O]; the last row is the pixel's own
        # At row y of the image, row r of the ring holds row y − (y − r) mod rows.
        orders = [[rows - 1 - (y - r) % rows for r in range(rows)] for y in range(rows)]
        self.rows, self.relu, self.residual = rows, layer.relu, layer.residual
        self.weights = [by_tap[:, order].flatten(0, 2).contiguous() for order in orders]
        self.bias = weight.new_zeros(weight.shape[0]) if layer.conv.bias is None else layer.conv.bias.detach()
        self.taps = [_flat(cells, j, columns) for j in range(width)]
        self.cell = [[cells[:, j + columns // 2, r] for j in range(width)] for r in range(rows)]
        self.out = weight.new_empty(count, weight.shape[0])


def _flat(cells: Tensor, first: int, columns: int) -> Tensor:
    """Returns cells[:, first : first + columns] as a view [N, columns · rows · C]."""
    size = cells[0, 0].numel()
    return cells.flatten(1)[:, first * size : (first + columns) * size]


@torch.inference_mode()
def cached(layers: Sequence[CausalLayer], uniforms: Tensor) -> Tensor:
    """Computes every activation once, with two or three PyTorch calls per layer and pixel on preallocated buffers and views."""
    count, width = uniforms.shape[0], uniforms.shape[3]
    rings = [_Ring(layer, count, width) for layer in layers]
    thresholds = torch.logit(uniforms).to(rings[0].out.dtype).permute(2, 3, 0, 1).contiguous()
    x = torch.zeros_like(thresholds)
    for i, (threshold_row, x_row) in enumerate(zip(thresholds, x, strict=True)):
        phase = [i % ring.rows for ring in rings]
        weights = [ring.weights[p] for ring, p in zip(rings, phase, strict=True)]
        cells = [ring.cell[p] for ring, p in zip(rings, phase, strict=True)]
        for j, (threshold, pixel) in enumerate(zip(threshold_row, x_row, strict=True)):
            for k, ring in enumerate(rings):
                before = rings[k - 1].out
                if k and ring.relu:
                    torch.clamp_min(before, 0.0, out=cells[k][j])
                elif k:
                    cells[k][j].copy_(before)
                torch.addmm(ring.bias, ring.taps[j], weights[k], out=ring.out)
                if ring.residual:
                    ring.out.add_(before)
            torch.gt(rings[-1].out, threshold, out=pixel)
            cells[0][j].copy_(pixel)
    return x.permute(2, 3, 0, 1).contiguous()

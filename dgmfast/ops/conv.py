"""Convolutions that see only what precedes a pixel in raster order."""

from __future__ import annotations

from torch import Tensor

from dgmfast import reference


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "B", colors: int = 1, unmasked_inputs: int = 0
) -> Tensor:
    return reference.masked_conv2d(x, weight, bias, mask, colors, unmasked_inputs)

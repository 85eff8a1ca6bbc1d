"""Convolutions that see only what precedes a pixel in raster order."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "B", colors: int = 1, unmasked_inputs: int = 0
) -> Tensor:
    """A convolution of "same" size, padded with zeros, in which a pixel sees only what precedes it in raster order.

    conv2d(x, weight · reference.causal_mask(...), bias), computed over the taps that the mask leaves.

    Args:
        x: [N, I, H, W]. weight: [O, I, kh, kw] with odd kh, kw; masked taps may hold anything. bias: None or [O]. One floating
            dtype and device.
        mask: "A" hides the pixel itself, "B" shows it.
        colors: channels, masked inputs and outputs alike, are so many groups of equal size in order. At the pixel itself an
            output sees the groups before its own, with "B" its own too.
        unmasked_inputs: the first so many inputs are in no group and seen at all taps.

    Returns:
        [N, O, H, W], in channels-last memory format where x is. Gradients flow to x, weight (exactly zero at masked taps) and
        bias; a second derivative raises. Under autocast the dtype is that of `torch.nn.functional.conv2d` on CUDA, and float32 on
        the CPU.

    Raises:
        ValueError: shapes do not fit, an even kernel, a mask that is neither, colors that do not divide the channels,
            unmasked_inputs out of range, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

    Source: van den Oord et al. (2016), Pixel Recurrent Neural Networks, section 3.4.
    """
    if is_compiling():
        return torch.ops.dgmfast.masked_conv2d(x, weight, bias, mask, colors, unmasked_inputs)
    try:
        return _C.masked_conv2d(x, weight, bias, mask, colors, unmasked_inputs)
    except TypeError as error:
        for name, value, expected in (("mask", mask, str), ("colors", colors, int), ("unmasked_inputs", unmasked_inputs, int)):
            if not isinstance(value, expected):
                kind = "a string" if expected is str else "an int"
                raise TypeError(f"masked_conv2d: {name} must be {kind}; got {type(value).__name__}") from None
        given = {} if bias is None else {"bias": bias}
        raise not_a_tensor("masked_conv2d", error, x=x, weight=weight, **given) from None

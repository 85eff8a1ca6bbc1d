"""Masked convolution: each output pixel depends only on the pixels that precede it in raster order."""

from __future__ import annotations

from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import REFUSALS, compiled, is_compiling, retry


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "B", colors: int = 1, unmasked_inputs: int = 0
) -> Tensor:
    """Convolution of "same" size, zero-padded, in which each pixel depends only on the pixels that precede it in raster order.

    Equivalent to conv2d(x, weight · reference.causal_mask(...), bias), but computed only over the taps that the mask keeps.

    Args:
        x: [N, I, H, W], floating point.
        weight: [O, I, kh, kw] with odd kh and kw, of the dtype and device of x. Masked taps may hold any value.
        bias: [O], of the dtype and device of x, or None.
        mask: "A" hides the pixel itself, "B" shows it.
        colors: Number of colour groups. Masked inputs and outputs are each split into that many equal, consecutive groups. At
            the pixel itself an output sees the groups before its own; with mask "B" it also sees its own group.
        unmasked_inputs: Number of input channels, counted from the first, that belong to no group and are seen at every tap.

    Returns:
        [N, O, H, W], in channels-last memory format if x has that format. Gradients flow to x, weight (exactly zero at masked
        taps) and bias. A second derivative raises NotImplementedError. Under autocast the dtype is that of
        `torch.nn.functional.conv2d` on CUDA, and float32 on the CPU. Without autocast, 16-bit tensors on the CPU are computed
        in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, the kernel size is even, the mask is neither "A" nor "B", colors does not divide the
            channels, unmasked_inputs is out of range, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: van den Oord et al. (2016), Pixel Recurrent Neural Networks, section 3.4.
    """
    if is_compiling():
        return compiled("masked_conv2d", (x, weight, bias), mask, colors, unmasked_inputs)
    try:
        return _C.masked_conv2d(x, weight, bias, mask, colors, unmasked_inputs)
    except REFUSALS as error:
        for name, value, expected in (("mask", mask, str), ("colors", colors, int), ("unmasked_inputs", unmasked_inputs, int)):
            if not isinstance(value, expected):
                kind = "a string" if expected is str else "an int"
                raise TypeError(f"masked_conv2d: {name} must be {kind}; got {type(value).__name__}") from None
        arguments = {"x": x, "weight": weight, "bias": bias}
        return retry(masked_conv2d, error, arguments, mask, colors, unmasked_inputs, optional=("bias",))

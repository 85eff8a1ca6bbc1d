"""Masked convolutions, the layers of autoregressive models over pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.reference import causal_mask


def odd_size(name: str, size: Any) -> tuple[int, int]:
    """The kernel size (height, width) given as one odd number or as two.

    Raises:
        InputError: A number is even or not positive.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or any(type(n) is not int or n < 1 or n % 2 == 0 for n in pair):
        raise InputError(f"{name} must be odd and positive; got {size!r}")
    return pair[0], pair[1]


class MaskedConv2d(nn.Conv2d):
    """Convolution of "same" size whose outputs see only what precedes them in raster order: [N, I, H, W] -> [N, O, H, W].

    The weights of hidden taps are zero and stay zero. The state dict of an ordinary masked convolution (weight, bias, and perhaps
    its mask) can be loaded. Stacks of such layers with kernels larger than 1 have the blind spot of van den Oord et al. (2016):
    pixels to the upper right that lie beyond the diagonal reach of the kernels are never seen.

    Args:
        in_channels: Number of input channels, including the unmasked ones.
        out_channels: Number of output channels.
        kernel_size: One odd number, or two (height, width).
        mask: "A" hides the pixel itself, "B" shows it.
        colors: Number of colour groups. Masked inputs and outputs are each split into that many equal, consecutive groups. At the
            pixel itself a group also sees the groups before it.
        unmasked_inputs: Number of input channels, counted from the first, that are seen at every tap.
        bias: If true, add a bias.
        device: The device of the parameters.
        dtype: The dtype of the parameters.

    Raises:
        InputError: An argument is out of range, or colors does not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask: str = "B",
        colors: int = 1,
        unmasked_inputs: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = odd_size("kernel_size", kernel_size)
        if mask not in ("A", "B"):
            raise InputError(f"mask must be A or B; got {mask!r}")
        if not 0 <= unmasked_inputs <= in_channels:
            raise InputError(f"unmasked_inputs must lie in 0..{in_channels}, the input channels; got {unmasked_inputs}")
        if colors < 1 or (in_channels - unmasked_inputs) % colors or out_channels % colors:
            raise InputError(
                f"colors must divide the {in_channels - unmasked_inputs} masked input and {out_channels} output channels; "
                f"got {colors}"
            )
        padding = (size[0] // 2, size[1] // 2)
        super().__init__(in_channels, out_channels, size, padding=padding, bias=bias, device=device, dtype=dtype)
        self.mask, self.colors, self.unmasked_inputs = mask, colors, unmasked_inputs
        self.apply_mask()

    def _taps(self) -> Tensor:
        """Boolean mask of the weight: true for a visible tap, false for a hidden one."""
        size = (self.kernel_size[0], self.kernel_size[1])
        taps = causal_mask(self.mask, self.out_channels, self.in_channels, size, self.colors, self.unmasked_inputs)
        return taps.to(self.weight.device, torch.bool)

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Set the weights of hidden taps to zero."""
        self.weight.masked_fill_(~self._taps(), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H, W]."""
        return ops.masked_conv2d(x, self.weight, self.bias, self.mask, self.colors, self.unmasked_inputs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        state_dict.pop(prefix + "mask", None)  # Other libraries store a mask. load_state_dict passes a copy of the dict.
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        weight = self._parameters.get("weight")
        # The weight is computed from other parameters. It needs no mask, because the op does not read hidden taps.
        if weight is None:
            return
        if not local_metadata.get("assign_to_params_buffers", False):
            self.apply_mask()
        elif weight.is_meta or bool((weight.detach()[~self._taps()] != 0.0).any()):
            # The weight is the caller's own tensor, which must not be changed.
            self.weight = nn.Parameter(weight.detach().masked_fill(~self._taps(), 0.0), weight.requires_grad)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask}, colors={self.colors}, unmasked_inputs={self.unmasked_inputs}"


@dataclass(frozen=True)
class CausalLayer:
    """One layer of a PixelCNN: h -> conv(relu(h) if relu else h) + (h if residual else 0)."""

    conv: MaskedConv2d
    relu: bool = False
    residual: bool = False


def call_layers(layers: Sequence[CausalLayer], h: Tensor) -> Tensor:
    """Apply the layers in order to h [N, I, H, W], whose first channels are the unmasked inputs, and return the last output."""
    for layer in layers:
        out: Tensor = layer.conv(F.relu(h) if layer.relu else h)
        h = h + out if layer.residual else out
    return h

"""Convolutional layers of autoregressive models."""

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
    """The kernel (height, width) that `size`, one odd number or two, stands for."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or any(type(n) is not int or n < 1 or n % 2 == 0 for n in pair):
        raise InputError(f"{name} must be odd and positive; got {size!r}")
    return pair[0], pair[1]


class MaskedConv2d(nn.Conv2d):
    """A convolution of "same" size whose outputs see only what precedes them in raster order: [N, I, H, W] -> [N, O, H, W].

    mask: "A" hides the pixel itself, "B" shows it. colors: channels are that many groups, the pixel's colours in their order; a
    group also sees the groups before it. unmasked_inputs: the first so many input channels are seen in full. The weights of
    hidden taps are zero and stay so; a state dict of an ordinary masked convolution (weight, bias, perhaps its mask) loads.
    Stacks of such layers with kernels above 1 have the blind spot of van den Oord et al. (2016): pixels to the upper right beyond
    the kernels' diagonal reach are never seen.
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
        """True where a weight is seen, and false where it is hidden."""
        size = (self.kernel_size[0], self.kernel_size[1])
        taps = causal_mask(self.mask, self.out_channels, self.in_channels, size, self.colors, self.unmasked_inputs)
        return taps.to(self.weight.device, torch.bool)

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Set the weights of hidden taps to zero."""
        self.weight.masked_fill_(~self._taps(), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.masked_conv2d(x, self.weight, self.bias, self.mask, self.colors, self.unmasked_inputs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        state_dict.pop(prefix + "mask", None)  # Other libraries keep it as a buffer. load_state_dict gives a copy of the dict.
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        weight = self._parameters.get("weight")
        if weight is None:  # It is made from other parameters, of which the op reads no hidden taps.
            return
        if not local_metadata.get("assign_to_params_buffers", False):
            self.apply_mask()
        elif weight.is_meta or bool((weight.detach()[~self._taps()] != 0.0).any()):
            # The weight is the caller's tensor, which must not change.
            self.weight = nn.Parameter(weight.detach().masked_fill(~self._taps(), 0.0), weight.requires_grad)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask}, colors={self.colors}, unmasked_inputs={self.unmasked_inputs}"


@dataclass(frozen=True)
class CausalLayer:
    """h -> conv(relu(h) if relu else h) + (h if residual else 0)."""

    conv: MaskedConv2d
    relu: bool = False
    residual: bool = False


def call_layers(layers: Sequence[CausalLayer], h: Tensor) -> Tensor:
    """The outputs of the last layer, of h [N, I, H, W] with the unmasked inputs first."""
    for layer in layers:
        out: Tensor = layer.conv(F.relu(h) if layer.relu else h)
        h = h + out if layer.residual else out
    return h

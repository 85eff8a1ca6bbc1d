"""Convolutions between the latents of a hierarchy, applied to flat rows: [..., n_in] -> [..., n_out]."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dgmfast.nn.mlp import ACTIVATIONS, lookup

Shape = tuple[int, int, int]  # channels, height, width


class OverRows(nn.Sequential):
    """Apply layers for images of shape `shape` to flat rows, and flatten their output: [..., C·H·W] -> [..., features]."""

    def __init__(self, shape: Shape, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.shape = shape

    def forward(self, h: Tensor) -> Tensor:
        """[..., C·H·W] -> [..., features]."""
        rows = h.shape[:-1]
        images: Tensor = super().forward(h.reshape(math.prod(rows), *self.shape))
        return images.view(*rows, math.prod(images.shape[1:]))


class ConvUp(OverRows):
    """Two 3 × 3 convolutions, the first with stride 2, each followed by batch norm and activation: [..., C·H·W] -> [..., n_out].

    Args:
        large: (C, H, W) of the input.
        small: (C', ⌈H/2⌉, ⌈W/2⌉) of the output.
        activation: A key of `ACTIVATIONS`.
        batch_norm: If false, there is no batch norm.
    """

    def __init__(self, large: Shape, small: Shape, activation: str, batch_norm: bool) -> None:
        super().__init__(
            large,
            nn.Conv2d(large[0], small[0], 3, stride=2, padding=1, bias=not batch_norm),
            *_activated(small[0], activation, batch_norm),
            nn.Conv2d(small[0], small[0], 3, padding=1, bias=not batch_norm),
            *_activated(small[0], activation, batch_norm),
        )
        self.n_out = math.prod(small)


class ConvDown(OverRows):
    """A dense layer to maps of shape `small`, a transposed convolution with stride 2 to `large`: [..., n_in] -> [..., n_out].

    Each of the two is followed by batch norm and an activation.

    Args:
        n_in: Size of the input.
        small: (C, H, W) of the maps. Its sides are half of those of large, rounded up.
        large: (C, H, W) of the output.
        activation: A key of `ACTIVATIONS`.
        batch_norm: If false, there is no batch norm.
    """

    def __init__(self, n_in: int, small: Shape, large: Shape, activation: str, batch_norm: bool) -> None:
        rest = (large[1] - (2 * small[1] - 1), large[2] - (2 * small[2] - 1))
        super().__init__(
            (n_in, 1, 1),
            nn.Flatten(),
            nn.Linear(n_in, math.prod(small), bias=not batch_norm),
            nn.Unflatten(1, small),
            *_activated(small[0], activation, batch_norm),
            nn.ConvTranspose2d(small[0], large[0], 3, 2, 1, rest, bias=not batch_norm),
            *_activated(large[0], activation, batch_norm),
        )
        self.n_out = math.prod(large)


def _activated(channels: int, activation: str, batch_norm: bool) -> list[nn.Module]:
    """The layers after a convolution: batch norm, if asked for, and the activation."""
    chosen = lookup("activation", activation, ACTIVATIONS)()
    return [nn.BatchNorm2d(channels), chosen] if batch_norm else [chosen]

"""Decoders as tensors by name, for the tests of mlp_bernoulli_log_prob, whose lists do not fit the table of op_cases."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from dgmfast import ops
from support.op_cases import Tensors

OP = "mlp_bernoulli_log_prob"


def draw(
    leading: tuple[int, ...] = (5, 3),
    widths: tuple[int, ...] = (9, 13, 21),
    *,
    x: str = "float",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Tensors:
    """Returns h, w0, b0, w1, b1, ..., x for the widths of h, the hidden layers and x; the weights preserve scale."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"h": (*leading, widths[0])}
    for i, (before, after) in enumerate(pairwise(widths)):
        shapes |= {f"w{i}": (after, before), f"b{i}": (after,)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors = {name: t / max(t.shape[-1], 1) ** 0.5 if name.startswith("w") else t for name, t in tensors.items()}
    pixels = torch.rand(leading[0], widths[-1], generator=generator, dtype=torch.float64)
    tensors["x"] = {"float": pixels, "bool": pixels < 0.5, "byte": (pixels < 0.5).byte()}[x]
    return {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in tensors.items()}


def arguments(tensors: Tensors, activation: str | None = None) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, str | None]:
    """Returns the arguments in the order of the schema."""
    layers = range(len(tensors) // 2 - 1)
    return tensors["h"], [tensors[f"w{i}"] for i in layers], [tensors[f"b{i}"] for i in layers], tensors["x"], activation


def value(tensors: Tensors, activation: str | None = None, which: ModuleType = ops) -> Tensor:
    return which.mlp_bernoulli_log_prob(*arguments(tensors, activation))

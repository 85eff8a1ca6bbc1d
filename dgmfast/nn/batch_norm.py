"""Batch normalisation of rows: over all leading dimensions, with its statistics frozen, and folded into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dgmfast.nn.plain import is_plain


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of [..., features] over all leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def normalises(module: nn.Module) -> bool:
    """Whether `module` normalises over a batch now."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in module.modules())


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation of `module` takes the statistics of each batch, as it does in training, and does not collect them."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def folded_linear(linear: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a linear layer with what normalises it.

    None where that depends on the batch, or where one of them is not exactly what was made (`is_plain`).
    """
    if not is_plain(linear, nn.Linear, "weight", "bias"):
        return None
    assert isinstance(linear, nn.Linear)
    if norm is None:
        return None if linear.bias is None else (linear.weight, linear.bias)
    if not is_plain(norm, RowBatchNorm, "weight", "bias") or linear.bias is not None:
        return None
    assert isinstance(norm, RowBatchNorm)
    if norm.training or norm.weight is None or norm.running_mean is None or norm.running_var is None:
        return None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return linear.weight * scale.unsqueeze(1), norm.bias - norm.running_mean * scale

"""Batch normalisation of rows: over all leading dimensions, with its statistics frozen, and folded into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


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


def folded_linear(linear: nn.Linear, norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a layer with what normalises it, where that does not depend on the batch."""
    if norm is None:
        return None if linear.bias is None else (linear.weight, linear.bias)
    if type(norm) is not RowBatchNorm or linear.bias is not None or norm.weight is None or norm.training:
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return linear.weight * scale.unsqueeze(1), norm.bias - norm.running_mean * scale

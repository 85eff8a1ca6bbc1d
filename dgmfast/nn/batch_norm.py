"""Batch normalisation over all leading dimensions, freezing of its statistics, and folding it into the linear layer before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dgmfast.nn.plain import is_plain


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of [..., features] over all leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> the same shape."""
        return super().forward(x.flatten(0, -2)).view(x.shape)


def normalises(module: nn.Module) -> bool:
    """True if `module` contains a batch normalisation in training mode, which uses the statistics of the batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in module.modules())


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager: batch norm uses the statistics of each batch, as in training, but does not update the running ones."""
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
    """The weight and bias of a linear layer with the batch normalisation `norm` folded in; None if that is not possible.

    It is not possible if the normalisation uses the statistics of the batch, or if a module was modified (see `is_plain`).
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

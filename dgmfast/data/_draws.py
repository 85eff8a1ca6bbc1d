"""Seeded choices about data: binarisation and labelled subsets."""

import torch
from torch import Tensor

from dgmfast.errors import InputError


def binarize(x: Tensor, seed: int) -> Tensor:
    """Draw Bernoulli(x): grey levels [N, ...] in [0, 1] -> float32 zeros and ones of the same shape.

    A pure function of x's values and the seed, whatever x's strides, dtype and device; torch uses the low 32 bits of the seed.
    Raises InputError when a value is outside [0, 1] or not a number.
    """
    x = x.detach()
    wrong = ~((x >= 0) & (x <= 1))  # True for NaN too
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise InputError(f"binarize: x must lie in [0, 1]; got {x[first].item()} in row {first[0] if first else 0}")
    # torch.bernoulli would hand out its draws in the order of x's strides.
    uniform = torch.rand(x.shape, generator=_generator("binarize", seed), dtype=torch.float32)  # in [0, 1): 1 always draws 1
    return uniform.to(x.device).lt_(x)


def few_labels(y: Tensor, n: int, seed: int, classes: int) -> Tensor:
    """Choose n labelled rows, n / classes of each class: labels [N] -> int64 indices [n], ascending.

    With the same y and seed a smaller n chooses a subset of a larger one.
    Raises InputError when n is not a positive multiple of classes, a label is not in 0..classes-1, or a class has too few rows.
    """
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise InputError(f"few_labels: y must be integer labels [N]; got {y.dtype} {list(y.shape)}")
    if classes < 1 or n < 1 or n % classes:
        raise InputError(f"few_labels: n must be a positive multiple of classes, {classes}; got {n}")
    outside = (y < 0) | (y >= classes)
    if outside.any():
        raise InputError(f"few_labels: y must lie in 0..{classes - 1}; got {y[outside][0].item()}")
    each = n // classes
    generator = _generator("few_labels", seed)
    chosen = []
    for label in range(classes):
        rows = (y == label).nonzero().flatten().cpu()
        if len(rows) < each:
            raise InputError(f"few_labels: expected at least {each} rows of class {label} for n = {n}; got {len(rows)}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:each]])
    return torch.cat(chosen).sort().values.to(y.device)


def _generator(function: str, seed: int) -> torch.Generator:
    try:
        return torch.Generator().manual_seed(seed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{function}: seed must be an integer that fits in 64 bits; got {seed!r}") from error

"""Seeded random choices about data: binarisation, dequantisation and labelled subsets."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset
from dgmfast.errors import InputError


def binarize(x: Tensor, seed: int) -> Tensor:
    """Draw Bernoulli(x): grey levels [N, ...] in [0, 1] -> float32 zeros and ones of the same shape.

    The result is a pure function of x's values and the seed; the strides, dtype and device of x do not matter. torch uses the low
    32 bits of the seed.

    Raises:
        InputError: A value is outside [0, 1] or NaN.
    """
    x = x.detach()
    wrong = ~((x >= 0) & (x <= 1))  # also true for NaN
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise InputError(f"binarize: x must lie in [0, 1]; got {x[first].item()} in row {first[0] if first else 0}")
    # torch.bernoulli would draw in the order of x's strides.
    uniform = torch.rand(x.shape, generator=_generator("binarize", seed), dtype=torch.float32)  # in [0, 1): 1 always draws 1
    return uniform.to(x.device).lt_(x)


def sample_inputs(dataset: Dataset, x: Tensor, seed: int) -> Tensor:
    """The input x of a model in one epoch: rows [N, D] of the data set -> float32 [N, D].

    "grey" rows are binarised by `binarize`. "levels" become (x + u) / scale with u uniform in [0, 1), so that a density of the
    result bounds a probability of levels (Uria et al. 2013). "binary" and "real" rows are returned unchanged. Like `binarize`,
    this is a pure function of x's values and the seed.

    Raises:
        InputError: x does not have the data set's kind or width.
    """
    if dataset.kind == "grey":
        return binarize(x, seed)
    if dataset.kind != "levels":
        return x
    x = x.detach()
    width = dataset.train.x.shape[1]
    if x.ndim != 2 or x.shape[1] != width:
        raise InputError(f"sample_inputs: x must be rows [N, {width}] of {dataset.name}; got {list(x.shape)}")
    if x.dtype != torch.uint8 and not ((x >= 0) & (x <= 255) & (x == x.round())).all():
        raise InputError(f"sample_inputs: x must hold the levels 0 to 255 of {dataset.name}; got other values in {x.dtype}")
    uniform = torch.rand(x.shape, generator=_generator("sample_inputs", seed), dtype=torch.float32)
    noisy = uniform.to(x.device).add_(x)  # [N, D]; in place, because SVHN with its extra set has 7 GB in float32
    return noisy if dataset.scale is None else noisy.div_(dataset.scale.to(x.device))


def labelled_rows(dataset: Dataset, n: int, seed: int) -> Tensor:
    """The n training rows whose labels a semi-supervised experiment may use: int64 indices [n], ascending.

    They are `dataset.labelled` if it has n entries, for any seed; otherwise they come from `balanced_subset`.

    Raises:
        InputError: The data set has no labels, or as in `balanced_subset`.
    """
    if dataset.train.y is None or dataset.classes is None:
        raise InputError(f"labelled_rows: expected rows with labels; {dataset.name} has none")
    if dataset.labelled is not None and len(dataset.labelled) == n:
        return dataset.labelled
    return balanced_subset(dataset.train.y, n, seed, dataset.classes)


def balanced_subset(y: Tensor, n: int, seed: int, classes: int) -> Tensor:
    """Choose n labelled rows, n / classes from each class: labels [N] -> int64 indices [n], ascending.

    With the same y and seed, a smaller n gives a subset of the rows of a larger n.

    Raises:
        InputError: n is not a positive multiple of classes or exceeds N, a label is not in 0..classes-1, or a class has too few
            rows.
    """
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise InputError(f"balanced_subset: y must be integer labels [N]; got {y.dtype} {list(y.shape)}")
    if classes < 1 or n < 1 or n % classes:
        raise InputError(f"balanced_subset: n must be a positive multiple of classes, {classes}; got {n}")
    if n > len(y):
        raise InputError(f"balanced_subset: n must be at most the number of rows, {len(y)}; got {n}")
    outside = (y < 0) | (y >= classes)
    if outside.any():
        raise InputError(f"balanced_subset: y must lie in 0..{classes - 1}; got {y[outside][0].item()}")
    each = n // classes
    generator = _generator("balanced_subset", seed)
    chosen = []
    for label in range(classes):
        rows = (y == label).nonzero().flatten().cpu()
        if not len(rows):
            raise InputError(f"balanced_subset: expected rows of each class 0..{classes - 1}; got none of class {label}")
        if len(rows) < each:
            raise InputError(f"balanced_subset: expected at least {each} rows of class {label} for n = {n}; got {len(rows)}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:each]])
    return torch.cat(chosen).sort().values.to(y.device)


def _generator(function: str, seed: int) -> torch.Generator:
    try:
        return torch.Generator().manual_seed(seed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{function}: seed must be an integer that fits in 64 bits; got {seed!r}") from error

"""What every reader returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `x` [N, D] float32, `y` [N] int64 or None."""

    x: Tensor  # [N, D], grey levels in [0, 1] or exactly 0/1 where Dataset.binary
    y: Tensor | None  # [N]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits and what a reader of results on it should know (`note`)."""

    name: str
    train: Split
    valid: Split | None
    test: Split
    image_shape: tuple[int, int, int] | None  # (C, H, W); None for tabular rows
    binary: bool  # False: x holds Bernoulli means, to be binarised
    classes: int | None
    note: str

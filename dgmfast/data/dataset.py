"""What every reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dgmfast.errors import InputError

Kind = Literal["grey", "binary", "levels", "real"]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `x` [N, D] float32, or uint8 where Dataset.kind is "levels"; `y` [N] int64 or None."""

    x: Tensor  # [N, D], as Dataset.kind says
    y: Tensor | None  # [N]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits and what a reader of results on it should know (`note`).

    kind says what x holds, and so what `sample_inputs` makes of it:
    "grey": Bernoulli means in [0, 1]; "binary": zeros and ones; "levels": integers 0 to 255, to be dequantised; "real": any.
    """

    name: str
    train: Split
    valid: Split | None
    test: Split
    image_shape: tuple[int, int, int] | None  # (C, H, W); None where a row is no whole image
    kind: Kind
    classes: int | None
    note: str
    pixels: Tensor | None = None  # [D] int64: the kept pixels in the flattened full image; None: all
    full_shape: tuple[int, int, int] | None = None  # (C, H, W) of the images that `pixels` are from
    scale: Tensor | None = None  # [D]: what dequantised levels are divided by; None: 1
    labelled: Tensor | None = None  # int64 indices of the training rows that the published experiment labels; None: any

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"Dataset: kind must be one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        for name in ("train", "valid", "test"):
            split: Split | None = getattr(self, name)
            if split is not None and split.x.ndim == 2:
                self._check_values(name, split.x)

    def _check_values(self, split: str, x: Tensor) -> None:
        """Raise InputError unless x [N, D] holds what `kind` says; training looks for what is not finite."""
        if self.kind == "grey":
            wrong, expected = (x < 0) | (x > 1), "lie in [0, 1]"
        elif self.kind == "binary":
            wrong, expected = (x != 0) & (x != 1) & x.isfinite(), "hold zeros and ones"
        else:
            return
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise InputError(
                f"Dataset {self.name}: x must {expected} for kind {self.kind}; "
                f"got {x[row, column].item():g} in row {row} of the {split} split"
            )

    @property
    def binary(self) -> bool:
        """Whether x holds zeros and ones."""
        return self.kind == "binary"

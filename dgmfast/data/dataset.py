"""The data structures that every reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dgmfast.errors import InputError

Kind = Literal["grey", "binary", "levels", "real"]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        x: [N, D], float32, or uint8 if Dataset.kind is "levels".
        y: [N] int64 class labels, or None.
    """

    x: Tensor  # [N, D]
    y: Tensor | None  # [N]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits.

    Args:
        name: The name of the data set.
        train: The training rows.
        valid: The validation rows, or None.
        test: The test rows.
        image_shape: (C, H, W) of a row, or None if a row is not a whole image.
        kind: The values of x, which decide what `sample_inputs` does: "grey" for Bernoulli means in [0, 1]; "binary" for zeros
            and ones; "levels" for integers 0 to 255, which are dequantised; "real" for any numbers.
        classes: Number of classes, or None.
        note: What a reader of results on this data should know.
        pixels: [D] int64, the pixels of the flattened full image that x keeps, or None for all.
        full_shape: (C, H, W) of the full images that `pixels` refers to.
        scale: [D], the divisor of dequantised levels, or None for 1.
        labelled: int64 indices of the training rows that the published experiment labels, or None.
        normalization: Mean and standard deviation [D] of the original columns, if x holds (column − mean) / std; else None.
        class_names: What the classes 0, 1, … are called, or None.

    Raises:
        InputError: The kind is unknown, or a value of x does not fit it.
    """

    name: str
    train: Split
    valid: Split | None
    test: Split
    image_shape: tuple[int, int, int] | None  # (C, H, W); None if a row is not a whole image
    kind: Kind
    classes: int | None
    note: str
    pixels: Tensor | None = None  # [D] int64: the pixels that are kept of the flattened full image; None: all
    full_shape: tuple[int, int, int] | None = None  # (C, H, W) of the full images
    scale: Tensor | None = None  # [D]: divisor of dequantised levels; None: 1
    labelled: Tensor | None = None  # int64 indices of the training rows that the published experiment labels; None: any
    normalization: tuple[Tensor, Tensor] | None = None  # mean and std [D] of the columns before they were normalised
    class_names: tuple[str, ...] | None = None  # what the classes 0, 1, … are called

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"Dataset: kind must be one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        for name in ("train", "valid", "test"):
            split: Split | None = getattr(self, name)
            if split is not None and split.x.ndim == 2:
                self._check_values(name, split.x)

    def _check_values(self, split: str, x: Tensor) -> None:
        """Raise InputError unless x [N, D] holds values of this kind. Training checks whether they are finite."""
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
        """True if x holds zeros and ones."""
        return self.kind == "binary"

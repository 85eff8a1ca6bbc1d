"""Class probabilities and the classification error of label models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.evaluate.passes import in_blocks
from dgmfast.models import LabelModel


@torch.no_grad()
def class_probabilities(model: LabelModel, x: Tensor, k: int = 10, seed: int = 0, by: str | None = None) -> Tensor:
    """Class probabilities of the rows x [N, D] from `model.classify`, in evaluation mode and in blocks: [N, Y].

    Args:
        model: A model with labels.
        x: [N, D].
        k: Number of samples of the latents per row.
        seed: Seed of the noise.
        by: The classifier, as in `model.classify`; None for the model's default.

    Raises:
        InputError: The model has no labels, or `classify` raises it.
    """
    if not isinstance(model, LabelModel):
        raise InputError(f"class_probabilities: model must have labels; got {type(model).__name__}")
    x = model.rows(x)
    model.check("class_probabilities", x, None)
    chosen: dict[str, Any] = {} if by is None else {"by": by}
    return in_blocks(model, x, lambda part, first: model.classify(part, k, seed, first_row=first, **chosen))


def classification_error(model: LabelModel, x: Tensor, y: Tensor, k: int = 10, seed: int = 0, by: str | None = None) -> float:
    """The percentage of the rows x [N, D] whose most probable class is not y [N]. NaN if there are no rows.

    The other arguments are those of `class_probabilities`.

    Raises:
        InputError: As in `class_probabilities`; or y is not [N] int64 on the device of x, or not a class of the model.
    """
    if not isinstance(y, Tensor):
        raise InputError(f"classification_error: y must be the labels of the rows; got {type(y).__name__}")
    x = model.rows(x)
    model.check("classification_error", x, y)
    wrong = class_probabilities(model, x, k, seed, by).argmax(1) != y
    return 100.0 * wrong.double().mean().item()

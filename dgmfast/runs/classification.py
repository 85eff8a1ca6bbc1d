"""Classification of a data set's rows by a run's model, with the error and its standard error."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, bincount

from dgmfast import data
from dgmfast.errors import InputError
from dgmfast.evaluate import class_probabilities
from dgmfast.files import write_atomically
from dgmfast.models import MODELS, GenerativeModel, LabelModel
from dgmfast.recipes import Recipe
from dgmfast.runs.folder import fixed_split

CLASSIFY_BY = ("q", "p", "both", "cascade")


@dataclass(frozen=True)
class Classification:
    """Class probabilities [N, Y] of rows with the true classes y [N].

    `by` names the classifier.
    """

    probabilities: Tensor
    y: Tensor
    by: str

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each row, [N]."""
        return self.probabilities.argmax(1)

    @property
    def error(self) -> float:
        """The percentage of rows whose most probable class is not y."""
        return 100.0 * (self.predicted != self.y).double().mean().item()

    @property
    def std_error(self) -> float:
        """The binomial standard error of `error`, in percent."""
        return binomial_error(self.error, len(self.y))

    @property
    def confusion(self) -> Tensor:
        """The confusion matrix [Y, Y]: the number of rows of class y that were assigned to class c."""
        classes = self.probabilities.shape[1]
        return bincount(self.y * classes + self.predicted, minlength=classes**2).view(classes, classes)


def binomial_error(percent: float, n: int) -> float:
    """The standard error, in percent, of a percentage measured on n rows."""
    return math.sqrt(percent * (100.0 - percent) / n)


def classify_rows(
    model: GenerativeModel,
    recipe: Recipe,
    dataset: data.Dataset,
    split: str = "test",
    samples: int = 1,
    seed: int = 0,
    by: str | None = None,
    grey: bool = False,
) -> Classification:
    """Classify the rows of a split, with `samples` samples of the latents per row.

    Args:
        model: The run's model.
        recipe: The run's recipe.
        dataset: The data set.
        split: "train", "valid" or "test".
        samples: Number of samples of the latents per row.
        seed: Seed of the noise.
        by: The classifier, as in `LabelModel.classify`; None for the model's default.
        grey: If true, q(y|x) gets the grey levels themselves, as in the authors' public code, instead of one binary draw of them.

    Raises:
        InputError: The model has no label or was trained without labels, the split has no labels, the numbers of classes differ,
            `by` is unknown, or grey is used for rows without grey levels or together with a bound.
    """
    name = recipe.model["name"]
    if not isinstance(model, LabelModel):
        known = ", ".join(name for name, kind in MODELS.items() if issubclass(kind, LabelModel))
        raise InputError(f"classify: expected a run of a model with a label, one of {known}; got one of {name}")
    if not recipe.labels:
        raise InputError(f"classify: expected a run that was trained with labels; {recipe.name} had none, so its y is no class")
    if grey and (dataset.kind != "grey" or by in ("p", "both")):
        raise InputError(
            f"classify: grey needs rows of grey levels and by q or cascade; got {dataset.kind} rows and by {by or 'q'}"
        )
    rows = fixed_split(dataset, split, recipe.binarize and not grey)
    if rows.y is None or len(rows.x) == 0:
        raise InputError(f"classify: expected rows with labels; {dataset.name} {split} has none")
    if dataset.classes != model.num_classes:
        raise InputError(f"classify: expected the {model.num_classes} classes of the run; {dataset.name} has {dataset.classes}")
    device = next(model.parameters()).device
    by = by or inspect.signature(model.classify).parameters["by"].default
    probabilities = class_probabilities(model, rows.x.to(device), samples, seed, by)
    return Classification(probabilities.cpu(), rows.y.cpu(), by)


def write_class_rows(path: Path, result: Classification) -> None:
    """Write one line per row: its number, class, most probable class, and the probability of every class.

    Raises:
        InputError: The file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "label", "predicted", *(f"p{c}" for c in range(result.probabilities.shape[1]))])
    rows = zip(result.y.tolist(), result.predicted.tolist(), result.probabilities.tolist(), strict=True)
    table.writerows([i, y, predicted, *(f"{p:.6g}" for p in row)] for i, (y, predicted, row) in enumerate(rows))
    write_atomically(path, text.getvalue().encode())


def write_class_summary(path: Path, settings: dict[str, Any], result: Classification) -> None:
    """Write the error and the confusion matrix as JSON.

    Raises:
        InputError: The file cannot be written.
    """
    summary = {"by": result.by, "rows": len(result.y), "error": result.error, "std_error": result.std_error}
    content = {**settings, **summary, "confusion": result.confusion.tolist()}
    write_atomically(path, (json.dumps(content) + "\n").encode())

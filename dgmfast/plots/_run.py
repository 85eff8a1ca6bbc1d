"""All figures of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmfast import _run, data, evaluate
from dgmfast._seeds import derive_seed
from dgmfast.data import Dataset, Split
from dgmfast.models.base import GenerativeModel, LabelModel
from dgmfast.models.cagem import CaGeM
from dgmfast.models.fame import FAME
from dgmfast.models.pixelcnn import PixelCNN
from dgmfast.models.potential import Potential
from dgmfast.plots._curves import kl_layers, kl_units, training_curve
from dgmfast.plots._images import Layout, analogies, completions, masking_study, reconstructions, samples, z2_grid
from dgmfast.plots._latents import confusion_matrix, decision_regions, latent_space, potential
from dgmfast.plots._log import read_metrics, read_recipe
from dgmfast.recipes import Recipe

LATENT_ROWS = 5000  # more points hide each other


def draw_run(folder: Path, model: GenerativeModel, split: Split, dataset: Dataset, seed: int = 0) -> list[Path]:
    """All figures that a run can have, under figures/ of its folder.

    Of images only where the rows are images, of classes only for a model with a label, of the training where its log is there.
    """
    out = _run.figures_folder(folder)
    recipe = read_recipe(folder) if (folder / _run.CONFIG).exists() else None
    if isinstance(model, Potential):
        drawn = [potential(model, out / "potential.png", seed=seed)]
    else:
        drawn = _draw_model(out, model, split, dataset, seed)
        if isinstance(model, LabelModel) and not model.without_labels and split.y is not None:
            drawn += _draw_classes(out, model, split.x, split.y, dataset, recipe, seed)
    return drawn + _draw_log(out, folder / _run.METRICS, "" if recipe is None else recipe.name)


def _draw_model(out: Path, model: GenerativeModel, split: Split, dataset: Dataset, seed: int) -> list[Path]:
    x, y = split.x[:LATENT_ROWS], None if split.y is None else split.y[:LATENT_ROWS]
    drawn = [] if isinstance(model, PixelCNN) else [latent_space(model, x, out / "latent_space.png", y=y)]
    layout = Layout.of(dataset)
    if layout is not None:
        drawn.append(samples(model, out / "samples.png", layout, seed=seed))
        drawn.append(reconstructions(model, x, out / "reconstructions.png", layout, seed=seed))
        if isinstance(model, PixelCNN):
            drawn.append(completions(model, x, out / "completions.png", layout, seed=seed))
        if isinstance(model, FAME) and model.autoregressive:
            drawn.append(masking_study(model, x, out / "masking_study.png", layout, seed=seed))
        if isinstance(model, LabelModel) and not model.without_labels:
            drawn.append(analogies(model, out / "analogies.png", layout, seed=seed))
        if isinstance(model, CaGeM) and model.latent[1] == 2:
            fixed = min(2, model.num_classes - 1)
            drawn.append(z2_grid(model, x, out / "z2_grid.png", layout, y=y, fixed=fixed, seed=seed))
    return drawn


def _draw_classes(
    out: Path, model: LabelModel, x: Tensor, y: Tensor, dataset: Dataset, recipe: Recipe | None, seed: int
) -> list[Path]:
    classes, columns = dataset.classes or int(y.max()) + 1, model.num_classes
    predicted = evaluate.class_probabilities(model, x, 1, seed).argmax(1).cpu()
    counts = torch.bincount(y.cpu() * columns + predicted, minlength=classes * columns).view(classes, columns)
    unsupervised = recipe is not None and recipe.labels == 0
    if unsupervised:
        told: dict[str, Any] = {"predicted": "most probable cluster", "title": "Classes and the clusters found without labels"}
    else:
        told = {"title": f"Error {100.0 * float((predicted != y.cpu()).double().mean()):.2f} % of {len(y)} rows"}
    drawn = [confusion_matrix(counts, out / "confusion.png", **told)]
    if x.shape[1] == 2 and not unsupervised:
        labelled = None if recipe is None else labelled_rows(recipe, dataset)
        part = slice(LATENT_ROWS)
        drawn.append(decision_regions(model, x[part], y[part], out / "decision_regions.png", labelled=labelled, seed=seed))
    return drawn


def _draw_log(out: Path, metrics: Path, title: str) -> list[Path]:
    if not metrics.exists() or metrics.stat().st_size == 0:
        return []
    drawn = [training_curve(metrics, out / "training_curve.png")]
    if any(record.get("kl_units") for record in read_metrics(metrics)):
        drawn.append(kl_units({title: metrics}, out / "kl_units.png"))
        drawn.append(kl_layers({title: metrics}, out / "kl_layers.png"))
    return drawn


def labelled_rows(recipe: Recipe, dataset: Dataset) -> tuple[Tensor, Tensor] | None:
    """The labelled training rows (x, y) of a run; None where it has none."""
    if not recipe.labels or dataset.train.y is None or dataset.classes is None:
        return None
    rows = data.labelled_rows(dataset, recipe.labels, derive_seed(recipe.seed, "labels"))
    return dataset.train.x[rows], dataset.train.y[rows]

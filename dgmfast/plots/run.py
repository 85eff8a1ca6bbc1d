"""All figures of one run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmfast import data
from dgmfast.data import Dataset, Split
from dgmfast.evaluate import class_probabilities
from dgmfast.models import FAME, CaGeM, GenerativeModel, LabelModel, PixelCNN, Potential
from dgmfast.plots.curves import SPLITS, kl_layers, kl_units, training_curve
from dgmfast.plots.images import Layout, analogies, completions, masking_study, reconstructions, samples, z2_grid
from dgmfast.plots.latents import confusion_matrix, decision_regions, latent_space, potential
from dgmfast.recipes import Recipe
from dgmfast.runs import CONFIG, METRICS, figures_folder, read_metrics, read_recipe
from dgmfast.seeds import derive_seed

LATENT_ROWS = 5000  # more points would hide each other


def draw_run(
    folder: Path, model: GenerativeModel, split: Split, dataset: Dataset, seed: int = 0, *, split_name: str = ""
) -> list[Path]:
    """Draw all figures that a run allows into the folder figures/ of the run, and return their paths.

    Figures of images need rows that are images, figures of classes need a model with a label, and figures of the training need
    its log. The figures of `dgmfast evaluate` and `classify` are not drawn. `split_name` is the name of the split, for the
    titles.
    """
    out = figures_folder(folder)
    recipe = read_recipe(folder) if (folder / CONFIG).exists() else None
    if isinstance(model, Potential):
        drawn = [potential(model, out / "potential.png", seed=seed)]
    else:
        rows_name = f"{SPLITS.get(split_name, split_name)} rows".strip()
        drawn = _draw_model(out, model, split, dataset, seed, rows_name)
        if isinstance(model, LabelModel) and not model.ignores_labels and split.y is not None:
            drawn += _draw_classes(out, model, split.x, split.y, dataset, recipe, seed, rows_name)
    return drawn + _draw_log(out, folder / METRICS, "" if recipe is None else recipe.name, isinstance(model, Potential))


def _draw_model(out: Path, model: GenerativeModel, split: Split, dataset: Dataset, seed: int, rows_name: str) -> list[Path]:
    """Draw the figures of the latents and of images."""
    x, y = split.x[:LATENT_ROWS], None if split.y is None else split.y[:LATENT_ROWS]
    drawn = [] if isinstance(model, PixelCNN) else [latent_space(model, x, out / "latent_space.png", y=y, rows_name=rows_name)]
    layout = Layout.of(dataset)
    if layout is not None:
        drawn.append(samples(model, out / "samples.png", layout, seed=seed))
        options: dict[str, Any] = {"seed": seed, "rows_name": rows_name}
        drawn.append(reconstructions(model, x, out / "reconstructions.png", layout, **options))
        if isinstance(model, PixelCNN):
            drawn.append(completions(model, x, out / "completions.png", layout, **options))
        if isinstance(model, FAME) and model.autoregressive:
            drawn.append(masking_study(model, x, out / "masking_study.png", layout, **options))
        if isinstance(model, LabelModel) and not model.ignores_labels:
            drawn.append(analogies(model, out / "analogies.png", layout, seed=seed))
        if isinstance(model, CaGeM) and model.latent[1] == 2:
            fixed = min(2, model.num_classes - 1)
            drawn.append(z2_grid(model, x, out / "z2_grid.png", layout, y=y, fixed=fixed, **options))
    return drawn


def _draw_classes(
    out: Path, model: LabelModel, x: Tensor, y: Tensor, dataset: Dataset, recipe: Recipe | None, seed: int, rows_name: str
) -> list[Path]:
    """Draw the clusters of a run without labels, or the decision regions of a run with labels in the plane."""
    if recipe is not None and recipe.labels == 0:
        classes, columns = dataset.classes or int(y.max()) + 1, model.num_classes
        clusters = class_probabilities(model, x, 1, seed).argmax(1).cpu()
        counts = torch.bincount(y.cpu() * columns + clusters, minlength=classes * columns).view(classes, columns)
        title = f"Clusters found without labels: {len(y)} {rows_name}, 1 draw, seed {seed}"
        return [confusion_matrix(counts, out / "clusters.png", predicted="most probable cluster", title=title)]
    if x.shape[1] != 2:
        return []
    labelled, part = None if recipe is None else labelled_rows(recipe, dataset), slice(LATENT_ROWS)
    options: dict[str, Any] = {"labelled": labelled, "seed": seed, "rows_name": rows_name}
    return [decision_regions(model, x[part], y[part], out / "decision_regions.png", **options)]


def _draw_log(out: Path, metrics: Path, title: str, potential: bool) -> list[Path]:
    """Draw the figures of the training."""
    if not metrics.exists() and title:
        warnings.warn(f"{metrics} is not there: the figures of the training are left out", stacklevel=3)
    if not metrics.exists() or metrics.stat().st_size == 0:
        return []
    drawn = [training_curve(metrics, out / "training_curve.png", potential=potential)]
    if any(record.get("kl_units") for record in read_metrics(metrics)):
        drawn.append(kl_units({title: metrics}, out / "kl_units.png"))
        drawn.append(kl_layers({title: metrics}, out / "kl_layers.png"))
    return drawn


def labelled_rows(recipe: Recipe, dataset: Dataset) -> tuple[Tensor, Tensor] | None:
    """The labelled training rows (x, y) of a run, or None if it has none."""
    if not recipe.labels or dataset.train.y is None or dataset.classes is None:
        return None
    rows = data.labelled_rows(dataset, recipe.labels, derive_seed(recipe.seed, "labels"))
    return dataset.train.x[rows], dataset.train.y[rows]

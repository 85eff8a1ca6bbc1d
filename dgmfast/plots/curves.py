"""Figures of one training run: bounds, terms and errors over the epochs, and the KL of each unit and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgmfast.errors import InputError
from dgmfast.plots.canvas import fold, line, new_figure, over_epochs, save, show_late_values, whole_numbers
from dgmfast.runs import Record, metric_names, metric_series, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


NATS = "nats per row"
BOUNDS = {
    "objective": "training, objective",
    "elbo": "training, ELBO",
    "labelled_elbo": "labelled rows, bound on log p(x, y)",
    "valid_elbo": "validation, ELBO",
    "test_elbo": "test, ELBO",
}
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
FAINTEST_KL = 1e-3  # nats; smaller values are drawn like this one


def training_curve(metrics: str | Path, path: str | Path, *, potential: bool = False) -> Path:
    """Draw the bounds and their terms over the epochs, in nats, from metrics.jsonl.

    Models that are trained with labels also get the cross-entropies of the classifiers in nats, and the error in percent.
    `potential` says that the model is a Potential, which has a density in place of data.

    Raises:
        InputError: The file cannot be read, or holds no epoch yet.
    """
    records = read_metrics(metrics)
    entropies = metric_names(records, prefix="ce_")
    errors = metric_names(records, suffix="_error") if entropies else []  # without labels the number of a class means nothing
    panels = 2 + bool(entropies) + bool(errors)
    shape = (2, 2) if panels == 4 else (1, panels)
    figure = new_figure(5.0 * shape[1], 4.2 * shape[0])
    bounds, terms, *others = figure.subplots(*shape).flat
    _draw_bounds(bounds, records, "log Z" if potential else "log p(x)")
    epochs, reconstruction = metric_series(records, "reconstruction")
    line(terms, epochs, [-value for value in reconstruction], "E U(z)" if potential else "−E log p(x | ·)", 0)
    for number, name in enumerate(metric_names(records, prefix="kl_"), 1):
        line(terms, *metric_series(records, name), f"KL of {name.removeprefix('kl_')}", number)
    over_epochs(terms, f"{NATS} (their sum is −ELBO)", "Terms of the bound on the training rows")
    if entropies:
        axes = others.pop(0)
        for number, name in enumerate(entropies):
            classifier = name.removeprefix("ce_").replace("_y", "(y | ·)")
            line(axes, *metric_series(records, name), f"−E log {classifier}", number)
        over_epochs(axes, NATS, "Cross-entropy of the labelled training rows")
    if errors:
        for number, name in enumerate(errors):
            line(others[0], *metric_series(records, name), f"{split_of(name)} rows", number)
        over_epochs(others[0], "error (%)", "Classification error")
    return save(figure, path)


def _draw_bounds(axes: Axes, records: list[Record], of: str) -> None:
    shown = [name for name in BOUNDS if metric_names(records, prefix=name)]
    # With labels, the objective includes weighted cross-entropies, which are not on the scale of the bounds.
    with_labels = bool(metric_names(records, prefix="ce_"))
    if with_labels or all(math.isclose(record["objective"], record["elbo"], rel_tol=1e-4) for record in records):
        shown.remove("objective")  # with one sample and without warm-up it is the ELBO
    for number, name in enumerate(shown):
        line(axes, *metric_series(records, name), BOUNDS[name], number)
    show_late_values(axes, [metric_series(records, name)[1] for name in shown])
    over_epochs(axes, f"{NATS} (higher is better)", f"Bounds on {of}")


def split_of(name: str) -> str:
    """The name of the split in the name of a metric: "validation" of "valid_error"."""
    split = name.rpartition("_")[0]
    return SPLITS.get(split, split)


def kl_units(metrics: Mapping[str, str | Path], path: str | Path) -> Path:
    """Draw the log KL of each unit over the epochs, from the metrics.jsonl of each run, given by its title (thesis Fig. 5.2).

    There is a box per layer, whose units are sorted by their last KL, and a column per run.

    Raises:
        InputError: A file cannot be read, or holds no epoch with the KL of its units.
    """
    runs = _runs(metrics, 3.6)
    layers = list({layer: None for run in runs.values() for layer in run})[::-1]  # the first layer is the lowest box
    heights = {layer: max(len(run[layer][1]) for run in runs.values() if layer in run) for layer in layers}
    tall = [max(heights[layer], 6) for layer in layers]
    height = 1.2 + 0.9 * len(layers) + 0.03 * sum(tall)
    figure = new_figure(4.0 * len(runs) + 1.2, max(height, 2.8))  # the colour bar's label needs 2 inches
    grid = figure.subplots(len(layers), len(runs), squeeze=False, sharex="col", gridspec_kw={"height_ratios": tall})
    from matplotlib.colors import LogNorm

    most = max(values.max() for run in runs.values() for _, values in run.values())
    shade = LogNorm(FAINTEST_KL, max(float(most), 10 * FAINTEST_KL), clip=True)
    for column, (title, run) in zip(grid.T, runs.items(), strict=True):
        for axes, layer in zip(column, layers, strict=True):
            if layer not in run:
                axes.set_visible(False)
                continue
            epochs, values = run[layer]
            order = np.argsort(values[:, -1])  # the strongest unit on top
            rows = np.arange(len(order) + 1) - 0.5
            mesh = axes.pcolormesh(_edges(epochs), rows, np.maximum(values[order], FAINTEST_KL), norm=shade, cmap="magma_r")
            axes.set_yticks([])
            axes.set_ylabel(f"{layer}\n{len(order)} units", rotation=0, ha="right", va="center")
        next(axes for axes, layer in zip(column, layers, strict=True) if layer in run).set_title(title)
        whole_numbers(column[-1].xaxis)
        column[-1].set_xlabel("epoch")
    figure.colorbar(mesh, ax=grid, label="KL of a unit (nats)", extend="min")
    return save(figure, path)


def kl_layers(metrics: Mapping[str, str | Path], path: str | Path) -> Path:
    """Draw the KL of each layer, the sum over its units, over the epochs, with a panel per run.

    The arguments are those of `kl_units`.

    Raises:
        InputError: As in `kl_units`.
    """
    runs = _runs(metrics, 4.6)
    figure = new_figure(5.2 * len(runs), 4.2)
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    layers = list({layer: None for run in runs.values() for layer in run})
    sums = {title: {layer: values.sum(0).tolist() for layer, (_, values) in run.items()} for title, run in runs.items()}
    lowest = min(min(values) for run in sums.values() for values in run.values())
    for axes, (title, run) in zip(panels, runs.items(), strict=True):
        for layer, (epochs, _) in run.items():
            line(axes, epochs, sums[title][layer], layer, layers.index(layer))
        over_epochs(axes, "KL of a layer (nats per row)", title)
        axes.label_outer()
    if lowest >= 0.0:
        panels[0].set_ylim(bottom=0.0)  # the panels share it
    return save(figure, path)


def _runs(metrics: Mapping[str, str | Path], inches: float) -> dict[str, Units]:
    """The KL of the units of each run, by a title that says on which rows it is, in lines of `inches`."""
    runs = {}
    for title, file in metrics.items():
        records = read_metrics(file)
        units = _units(records, file)
        split = next((split_of(name) for name in ("valid_elbo", "test_elbo") if metric_names(records, prefix=name)), "held-out")
        runs[fold(f"{title}, {split} rows" if title else f"{split} rows", inches)] = units
    return runs


Units = dict[str, tuple[list[int], np.ndarray[Any, Any]]]  # layer -> epochs [E], KL [D, E]


def _units(records: list[Record], file: str | Path) -> Units:
    """The KL of each unit over the epochs, by layer."""
    found: dict[str, list[tuple[int, list[float]]]] = {}
    for record in records:
        for layer, values in (record.get("kl_units") or {}).items():
            found.setdefault(layer, []).append((record["epoch"], values))
    if not found:
        raise InputError(f"{file}: expected an epoch with the KL of its units; got none")
    return {layer: ([epoch for epoch, _ in some], np.array([values for _, values in some]).T) for layer, some in found.items()}


def _edges(epochs: list[int]) -> np.ndarray[Any, Any]:
    """The edges of the cells of the epochs, half-way between the epochs."""
    at = np.array(epochs, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middles = 0.5 * (at[1:] + at[:-1])
    return np.concatenate([[at[0] - (middles[0] - at[0])], middles, [at[-1] + (at[-1] - middles[-1])]])

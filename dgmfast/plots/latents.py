"""Figures of latent spaces, classes, and densities in the plane."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.evaluate import class_probabilities
from dgmfast.models import GenerativeModel, LabelModel, Potential
from dgmfast.plots.canvas import MARKERS, color, fold, legend_beside, new_figure, save, scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WRITTEN_CLASSES = 20  # a larger confusion matrix is drawn without its numbers, and with fewer ticks
REGION_CELLS = 160
DENSITY_CELLS = 100  # with more, the histogram of the samples is too noisy
DENSITY_HALF_WIDTH = 4.0


@torch.no_grad()
def latent_space(
    model: GenerativeModel, x: Tensor, path: str | Path, *, y: Tensor | None = None, seed: int = 0, rows_name: str = "rows"
) -> Path:
    """Draw the means of q for each latent at x [N, D], on their two principal components, coloured by the class y [N].

    `rows_name` is the name of the rows in the title, such as "test rows".
    """
    means = model.latent_means(x, seed=seed)
    figure = new_figure(5.0 * len(means), 4.6)
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, mean) in zip(panels, means.items(), strict=True):
        _principal(axes, name, mean, y, rows_name)
    if y is not None:
        legend_beside(figure, panels[0], "class", markerscale=2.0)
    return save(figure, path)


def confusion_matrix(counts: Tensor, path: str | Path, *, predicted: str = "predicted class", title: str = "") -> Path:
    """Draw counts [Y, C], the number of rows of class y that were assigned to c.

    Raises:
        InputError: counts is not a matrix.
    """
    if counts.dim() != 2:
        raise InputError(f"confusion_matrix: counts must be [Y, C]; got {list(counts.shape)}")
    from sklearn.metrics import ConfusionMatrixDisplay

    classes, columns = counts.shape
    most = max(classes, columns)
    square = np.zeros((most, most), dtype=np.int64)  # ConfusionMatrixDisplay takes no other; the axes end where counts does
    square[:classes, :columns] = counts.cpu().numpy()
    figure = new_figure(max(0.45 * min(columns, 24), 3.2) + 1.0, max(0.45 * min(classes, 24), 1.6) + 1.2)
    axes, written = figure.subplots(), most <= WRITTEN_CLASSES
    look: dict[str, Any] = {"cmap": "Blues", "im_kw": {"vmin": 0}, "colorbar": False, "include_values": written}
    display = ConfusionMatrixDisplay(square)
    display.plot(ax=axes, values_format="d", text_kw={"fontsize": 8, "clip_on": True}, **look)
    if not written:
        figure.colorbar(display.im_, label="rows")
    step = 1 if written else math.ceil(most / WRITTEN_CLASSES)
    axes.set(xlim=(-0.5, columns - 0.5), xticks=range(0, columns, step), xticklabels=range(0, columns, step), xlabel=predicted)
    axes.set(ylim=(classes - 0.5, -0.5), yticks=range(0, classes, step), yticklabels=range(0, classes, step), ylabel="true class")
    figure.suptitle(fold(title, figure.get_figwidth(), 10), fontsize=10)
    return save(figure, path)


@torch.no_grad()
def decision_regions(
    model: LabelModel,
    x: Tensor,
    y: Tensor,
    path: str | Path,
    *,
    labelled: tuple[Tensor, Tensor] | None = None,
    k: int = 10,
    seed: int = 0,
    rows_name: str = "rows",
) -> Path:
    """Draw rows x [N, 2] with their classes y [N] over the class that the model predicts at each point of the plane.

    The labelled rows (x, y) are drawn large. A model with an auxiliary variable also gets its space by PCA (thesis Fig. 4.7).

    Args:
        model: A model with a label.
        x: [N, 2].
        y: [N].
        path: The PNG file.
        labelled: The labelled rows, or None.
        k: Number of samples of the latents for each prediction.
        seed: Seed of the noise.
        rows_name: The name of the rows in the title.

    Raises:
        InputError: The model has no label, or the rows are not points of the plane.
    """
    if not isinstance(model, LabelModel) or x.shape[1] != 2:
        raise InputError(
            f"decision_regions: expected a model with a label and rows of 2; got {type(model).__name__} and rows of {x.shape[1]}"
        )
    low, high = x.amin(0).cpu() - 0.3, x.amax(0).cpu() + 0.3
    across, up = (torch.linspace(float(low[i]), float(high[i]), REGION_CELLS) for i in (0, 1))
    plane = torch.stack([across.repeat(REGION_CELLS), up.repeat_interleave(REGION_CELLS)], 1).to(x)
    regions = class_probabilities(model, plane, k, seed).argmax(1).view(REGION_CELLS, REGION_CELLS)
    means = model.latent_means(x, None, seed)
    auxiliary = means.get("a")
    figure = new_figure(6.4 if auxiliary is None else 11.6, 4.8)
    panels = figure.subplots(1, 1 if auxiliary is None else 2, squeeze=False)[0]
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([color(c) for c in range(model.num_classes)])
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    box: dict[str, Any] = {"origin": "lower", "extent": extent, "aspect": "auto", "interpolation": "nearest"}
    panels[0].imshow(regions.cpu().numpy(), cmap=colors, vmin=-0.5, vmax=model.num_classes - 0.5, alpha=0.25, **box)
    scatter(panels[0], x.cpu().numpy(), y.cpu().numpy())
    if labelled is not None:
        points, classes = (t.cpu().numpy() for t in labelled)
        for c in np.unique(classes):
            rows, look = points[classes == c], {"color": color(c), "marker": MARKERS[c % len(MARKERS)]}
            panels[0].scatter(rows[:, 0], rows[:, 1], s=110, edgecolors="black", linewidths=1.5, zorder=3, **look)
    panels[0].set_xlabel("first coordinate of x")
    panels[0].set_ylabel("second coordinate of x")
    legend_note = "" if labelled is None else f"; large: the {len(labelled[0])} labelled rows"
    title = f"Predicted class (background, {k} draws, seed {seed})\nand class of {len(x)} {rows_name}{legend_note}"
    panels[0].set_title(title, fontsize=10)
    if auxiliary is not None:
        _principal(panels[1], "a", auxiliary, y, rows_name)
    legend_beside(figure, panels[0], "class", markerscale=2.0)
    return save(figure, path)


@torch.no_grad()
def potential(model: Potential, path: str | Path, *, n: int = 200_000, seed: int = 0) -> Path:
    """Draw the density exp(−U(z))/Z that the model is fitted to, and the density of n samples of its q (App. A Fig. 2)."""
    edges = torch.linspace(-DENSITY_HALF_WIDTH, DENSITY_HALF_WIDTH, DENSITY_CELLS + 1, dtype=torch.float64)
    centres, cell = 0.5 * (edges[1:] + edges[:-1]), float(edges[1] - edges[0]) ** 2
    plane = torch.stack([centres.repeat(DENSITY_CELLS), centres.repeat_interleave(DENSITY_CELLS)], 1)
    log_target = model.log_target(plane).view(DENSITY_CELLS, DENSITY_CELLS)
    log_z = float(torch.logsumexp(log_target.flatten(), 0)) + float(np.log(cell))
    target = (log_target - log_z).exp().cpu().numpy()
    z = model.sample_q(n, seed).double().cpu().numpy()
    q = np.histogram2d(z[:, 1], z[:, 0], bins=(edges.numpy(), edges.numpy()))[0] / (n * cell)
    figure = new_figure(10.4, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    box: dict[str, Any] = {"origin": "lower", "extent": [-DENSITY_HALF_WIDTH, DENSITY_HALF_WIDTH] * 2, "cmap": "magma"}
    for axes, density, title in (
        (panels[0], target, f"Target exp(−U(z)) / Z, log Z = {log_z:.4f} nats"),
        (panels[1], q, f"Fit q(z): {n:,} samples, seed {seed}"),
    ):
        image = axes.imshow(density, vmin=0.0, vmax=max(float(target.max()), float(q.max())), **box)
        axes.set_xlabel("z₁")
        axes.set_title(title)
    panels[0].set_ylabel("z₂")
    figure.colorbar(image, ax=panels, label="density")
    return save(figure, path)


def _principal(axes: Axes, name: str, mean: Tensor, y: Tensor | None, rows_name: str) -> None:
    """Draw the rows of mean [N, D] on their two principal components."""
    from sklearn.decomposition import PCA

    points = mean.double().cpu().numpy()
    shares = [1.0, 0.0]
    if points.shape[1] > 1 and len(points) > 1:
        pca = PCA(2, svd_solver="full").fit(points)
        points, shares = pca.transform(points), np.nan_to_num(pca.explained_variance_ratio_)
    else:
        points = np.column_stack([points[:, 0], np.zeros(len(points))])
    scatter(axes, points, None if y is None else y.cpu().numpy())
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
    axes.set_title(f"Mean of q({name} | x), {mean.shape[1]} dimensions, {len(mean)} {rows_name}", fontsize=11)

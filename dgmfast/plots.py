"""Figures of a model and of its training, as PNG files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgmfast._files import write_atomically
from dgmfast._run import FIGURES, METRICS
from dgmfast.data import Split
from dgmfast.errors import InputError
from dgmfast.models.base import GenerativeModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageShape = tuple[int, int, int]  # (C, H, W)

# Okabe and Ito (2008), then Tol's "muted": both made for all kinds of colour vision; markers tell the rest apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#AA9F00", "#882255", "#999999")
MARKERS = "osv^D"
LATENT_ROWS = 5000  # more points hide each other


def samples(
    model: GenerativeModel, path: str | Path, image_shape: ImageShape, *, n: int = 100, y: Tensor | None = None, seed: int = 0
) -> Path:
    """n draws from the model, as the means of p(x | latents), in a grid."""
    images = _images(model.sample(n, y, seed), image_shape, "samples")
    columns = math.ceil(math.sqrt(n))
    figure = _figure(0.55 * columns, 0.55 * math.ceil(n / columns) + 0.4)
    axes = figure.subplots()
    _show(axes, _tile(images, columns))
    axes.set_title("Samples: mean of p(x | z), z drawn from the prior")
    return _save(figure, path)


def reconstructions(
    model: GenerativeModel,
    x: Tensor,
    path: str | Path,
    image_shape: ImageShape,
    *,
    n: int = 20,
    y: Tensor | None = None,
    seed: int = 0,
) -> Path:
    """The first n rows of x [N, D] above the means of p(x | latents) with the latents drawn from q(latents | x)."""
    x = x[:n]
    again = model.reconstruct(x, None if y is None else y[:n], seed)
    columns = min(10, len(x))
    figure = _figure(0.6 * columns + 0.9, 0.6 * 2 * math.ceil(len(x) / columns) + 0.6)
    rows = figure.subplots(math.ceil(len(x) / columns), 1, squeeze=False)[:, 0]
    for i, axes in enumerate(rows):
        part = slice(i * columns, (i + 1) * columns)
        pair = torch.cat([_images(x[part], image_shape, "x"), _images(again[part], image_shape, "reconstructions")])
        _show(axes, _tile(pair, len(x[part])), [(0.25, "data"), (0.75, "model")])
    figure.suptitle("Data, and the mean of p(x | z) with z drawn from q(z | x)", fontsize=11)
    return _save(figure, path)


@torch.no_grad()
def latent_space(model: GenerativeModel, x: Tensor, path: str | Path, *, y: Tensor | None = None) -> Path:
    """The means of q for each latent layer at x [N, D], on their two principal components, coloured by the class y [N]."""
    from sklearn.decomposition import PCA

    means = model.latent_means(model.encode(x))
    figure = _figure(5.0 * len(means) + (0.9 if y is not None else 0.0), 4.6)
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, mean) in zip(panels, means.items(), strict=True):
        points = mean.double().cpu().numpy()
        shares = [1.0, 0.0]
        if points.shape[1] > 1 and len(points) > 1:
            pca = PCA(2, svd_solver="full").fit(points)
            points, shares = pca.transform(points), pca.explained_variance_ratio_
        else:
            points = np.column_stack([points[:, 0], np.zeros(len(points))])
        _scatter(axes, points, None if y is None else y.cpu().numpy())
        axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
        axes.set_title(f"Mean of q({name} | x), {mean.shape[1]} dimensions")
    if y is not None:
        figure.legend(*panels[0].get_legend_handles_labels(), title="class", loc="outside right center", frameon=False)
    return _save(figure, path)


def training_curve(metrics: str | Path, path: str | Path) -> Path:
    """The bounds and their terms over the epochs, from metrics.jsonl, in nats.

    Raises:
        InputError: the file cannot be read, or holds no epoch yet.
    """
    records = _records(Path(metrics))
    figure = _figure(10.0, 4.2)
    bounds, terms = figure.subplots(1, 2)
    labels = {"objective": "training, objective", "elbo": "training, ELBO"}
    labels |= {"valid_elbo": "validation, ELBO", "test_elbo": "test, ELBO"}
    if all(math.isclose(record["objective"], record["elbo"], rel_tol=1e-4) for record in records):
        del labels["objective"]  # with one sample and without warm-up it is the ELBO
    for name, color in zip(labels, COLORS, strict=False):
        if any(name in record for record in records):
            _line(bounds, records, name, labels[name], color)
    bounds.set_ylabel("nats per example (higher is better)")
    bounds.set_title("Bounds on log p(x)")
    values = [[record[name] for record in records if name in record] for name in labels]
    low = min(sorted(some)[len(some) // 20] for some in values if some)
    high = max(max(some) for some in values if some)
    if high > low:  # the first epochs are far below and would flatten the rest
        bounds.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    bounds.legend(frameon=False)
    names = ["reconstruction", *(name for name in records[0] if name.startswith("kl_"))]
    for name, color in zip(names, COLORS, strict=False):
        sign = -1.0 if name == "reconstruction" else 1.0
        label = "−E log p(x | z)" if name == "reconstruction" else f"KL of {name.removeprefix('kl_')}"
        _line(terms, records, name, label, color, sign)
    terms.set_ylabel("nats per example (their sum is −ELBO)")
    terms.set_title("Terms of the training bound")
    terms.legend(frameon=False)
    for axes in (bounds, terms):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
    return _save(figure, path)


def draw_run(folder: Path, model: GenerativeModel, split: Split, image_shape: ImageShape | None, seed: int = 0) -> list[Path]:
    """All figures that a run's folder has, under figures/; those of images only where x is one."""
    x, y, out = split.x, split.y, folder / FIGURES
    drawn = [latent_space(model, x[:LATENT_ROWS], out / "latent_space.png", y=None if y is None else y[:LATENT_ROWS])]
    if image_shape is not None:
        labels = y if model.num_classes else None
        drawn.append(samples(model, out / "samples.png", image_shape, seed=seed))
        drawn.append(reconstructions(model, x, out / "reconstructions.png", image_shape, y=labels, seed=seed))
    if (folder / METRICS).stat().st_size > 0:
        drawn.append(training_curve(folder / METRICS, out / "training_curve.png"))
    return drawn


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected one JSON object per epoch; got {error}") from error
    if not records:
        raise InputError(f"{path}: expected one JSON object per epoch; got an empty file")
    return records


def _line(axes: Axes, records: list[dict[str, Any]], name: str, label: str, color: str, sign: float = 1.0) -> None:
    points = [(record["epoch"], sign * record[name]) for record in records if name in record]
    axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o" if len(points) < 3 else None, linewidth=1.6)


def _scatter(axes: Axes, points: np.ndarray, y: np.ndarray | None) -> None:
    size = 14 if len(points) < 2000 else 5
    if y is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=COLORS[0], linewidths=0)
        return
    for label in np.unique(y):
        color, marker = COLORS[label % len(COLORS)], MARKERS[label % len(MARKERS)]
        rows = points[y == label]
        axes.scatter(rows[:, 0], rows[:, 1], s=size, color=color, marker=marker, linewidths=0, alpha=0.8, label=str(label))


def _images(x: Tensor, shape: ImageShape, what: str) -> Tensor:
    """Rows [N, D] as images [N, C, H, W] of values in [0, 1]."""
    if x.shape[1] != math.prod(shape) or shape[0] not in (1, 3):
        raise InputError(f"{what}: expected images of shape {list(shape)} with 1 or 3 colours; got rows of {x.shape[1]}")
    return x.detach().cpu().float().clamp(0.0, 1.0).view(-1, *shape)


def _tile(images: Tensor, columns: int) -> np.ndarray:
    """[N, C, H, W] -> one image [rows·(H+1), columns·(W+1), C], its cells apart by a grey line, ink dark on white."""
    n, colors, height, width = images.shape
    rows = math.ceil(n / columns)
    ink = 1.0 - images if colors == 1 else images
    grid = torch.ones(rows * columns, colors, height + 1, width + 1)
    grid[:n] = 0.8
    grid[:n, :, :height, :width] = ink
    tiled = grid.view(rows, columns, colors, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * (height + 1), columns * (width + 1), colors)[:-1, :-1].numpy()


def _show(axes: Axes, image: np.ndarray, labels: list[tuple[float, str]] | None = None) -> None:
    axes.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([at * image.shape[0] for at, _ in labels or []], [text for _, text in labels or []])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _figure(width: float, height: float) -> Figure:
    # no pyplot: it would choose a window system and keep every figure alive
    from matplotlib.figure import Figure

    return Figure(figsize=(max(width, 3.6), max(height, 2.0)), dpi=150, layout="constrained")


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path

"""Figures of images: samples, reconstructions, completions, analogies, and the grid of a two-dimensional z₂."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dgmfast.data import Dataset, full_images
from dgmfast.errors import InputError
from dgmfast.files import parse_json
from dgmfast.models import FAME, CaGeM, GenerativeModel, LabelModel, Noise, PixelCNN
from dgmfast.plots.canvas import fold, legend_beside, new_figure, save, scatter
from dgmfast.recipes import Recipe
from dgmfast.runs import CONFIG, load_dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ImageShape = tuple[int, int, int]  # (C, H, W)
CELL = 0.6  # height of an image in inches
CLASSES = 20  # columns of analogies; with more, the images would be too small


@dataclass(frozen=True, eq=False)
class Layout:
    """How rows x [N, D] become images with values in [0, 1].

    Args:
        shape: (C, H, W) with C = 1 for a grey image, 2 for a pair of grey images, which are drawn side by side, or 3 for colours.
        pixels: [D] int64, the pixels of the image that a row holds, or None for all.
        unit: The factor of a value, a scalar or [D], or None for 1.
    """

    shape: ImageShape
    pixels: Tensor | None = None
    unit: Tensor | None = None

    @staticmethod
    def of(dataset: Dataset) -> Layout | None:
        """The layout of a data set's rows as models see them (see `data.sample_inputs`), or None if they are not images."""
        shape = dataset.image_shape or dataset.full_shape
        if shape is None:
            return None
        unit = None
        if dataset.kind == "levels":
            unit = (torch.ones(()) if dataset.scale is None else dataset.scale) / 256.0
        return Layout(shape, dataset.pixels, unit)

    def images(self, x: Tensor, what: str) -> Tensor:
        """x [N, D] -> [N, C, H, W] with C = 1 or 3.

        Raises:
            InputError: The rows have another size, or the number of channels cannot be drawn. The message begins with `what`.
        """
        width = math.prod(self.shape) if self.pixels is None else len(self.pixels)
        if x.shape[1] != width or self.shape[0] not in (1, 2, 3):
            raise InputError(
                f"{what}: expected images of shape {list(self.shape)} with 1, 2 or 3 channels, from rows of {width}; "
                f"got rows of {x.shape[1]}"
            )
        x = x.detach().cpu().float()
        images = full_images(self.pixels, self.shape, (x if self.unit is None else x * self.unit).clamp(0.0, 1.0))
        return torch.cat([images[:, :1], images[:, 1:]], 3) if self.shape[0] == 2 else images


def layout_of_run(folder: str | Path, recipe: Recipe, data_dir: str | Path | None = None) -> Layout | None:
    """The layout of a run's rows, from its config.json.

    If p(x|·) is Gaussian, the data set is read, because its levels may have a scale.

    Raises:
        InputError: config.json or the data set cannot be read.
    """
    path = Path(folder) / CONFIG
    try:
        config = parse_json(path.read_text())
        shape = config.get("image_shape") or config.get("full_shape")
        pixels = torch.tensor(config["pixels"]) if config.get("pixels") else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected the settings of a run; got {error}") from error
    if shape and recipe.model.get("likelihood") == "gaussian":
        return Layout.of(load_dataset(recipe, Path(folder), data_dir))
    return Layout(tuple(shape), pixels) if shape else None


def samples(
    model: GenerativeModel,
    path: str | Path,
    layout: Layout | ImageShape,
    *,
    n: int = 100,
    y: Tensor | None = None,
    seed: int = 0,
    x: Tensor | None = None,
) -> Path:
    """Draw n samples of the model in a grid: the means of p(x | latents), or samples of x if p is autoregressive.

    `x` [n, D] holds samples that exist already; `seed` is then not used.
    """
    images = _layout(layout).images(model.sample(n, y, seed) if x is None else x, "samples")
    drawn = "z" if model.num_classes is None or y is not None else "y and z"
    what = f"means of p(x | {_latents(model)}) with {drawn} drawn from the prior"
    if model.autoregressive:
        what = "x drawn pixel by pixel"
    title = f"{n} sample{'s' if n > 1 else ''}: {what}" + (f", seed {seed}" if x is None else "")
    return _save_grid(images, math.ceil(math.sqrt(n)), path, title)


def reconstructions(
    model: GenerativeModel,
    x: Tensor,
    path: str | Path,
    layout: Layout | ImageShape,
    *,
    n: int = 20,
    y: Tensor | None = None,
    seed: int = 0,
    rows_name: str = "rows",
) -> Path:
    """Draw the first n rows of x [N, D] above the means of p(x | latents), with the latents drawn from q(latents | x).

    A model with a label also draws the label from q(y | x), unless y [N] is given. An autoregressive p sees the preceding pixels
    of the data. `rows_name` is the name of the rows in the title, such as "test rows".
    """
    x, layout = x[:n], _layout(layout)
    again = model.reconstruct(x, None if y is None else y[:n], seed)
    data, model_images = layout.images(x, "x"), layout.images(again, "reconstructions")
    columns = min(10, len(x))
    wide = data.shape[3] / data.shape[2]
    figure = new_figure(CELL * columns * wide + 0.9, CELL * 2 * math.ceil(len(x) / columns) + 0.6)
    rows = figure.subplots(math.ceil(len(x) / columns), 1, squeeze=False)[:, 0]
    for i, axes in enumerate(rows):
        part = slice(i * columns, (i + 1) * columns)
        pair = torch.cat([data[part], model_images[part]])
        _show(axes, _tile(pair, len(x[part])), rows=["data", "model"])
    drawn = "z" if model.num_classes is None or y is not None else "y and z"
    what = f"means of p(x | {_latents(model)}) with {drawn} drawn from q, seed {seed}"
    if model.autoregressive:
        what = "means of each pixel given those before it"
        what += "" if isinstance(model, PixelCNN) else f" and z drawn from q, seed {seed}"
    _title(figure, f"The first {len(x)} {rows_name}: data, and {what}")
    return save(figure, path)


def masking_study(
    model: FAME,
    x: Tensor,
    path: str | Path,
    layout: Layout | ImageShape,
    *,
    n: int = 12,
    seed: int = 0,
    rows_name: str = "rows",
) -> Path:
    """Draw what each input of FAME's PixelCNN contributes (App. E Fig. 3).

    The figure shows the first n rows of x [N, D], and their reconstructions with both inputs, without the image from z, and
    without x. `rows_name` is the name of the rows in the title.

    Raises:
        InputError: The model is not a FAME with concatenation.
    """
    if not isinstance(model, FAME) or not model.autoregressive:
        raise InputError(f"masking_study: expected a FAME that concatenates x; got {type(model).__name__}")
    x, layout = x[:n], _layout(layout)
    named = {
        "data": x,
        "z and x": model.reconstruct(x, seed=seed),
        "without z": model.masked_reconstruct(x, "z", seed),
        "without x": model.masked_reconstruct(x, "x", seed),
    }
    images = torch.cat([layout.images(rows, name) for name, rows in named.items()])
    title = f"Means of each pixel with and without inputs of the PixelCNN: the first {len(x)} {rows_name}, seed {seed}"
    return _save_grid(images, len(x), path, title, rows=list(named))


def completions(
    model: PixelCNN,
    x: Tensor,
    path: str | Path,
    layout: Layout | ImageShape,
    *,
    n: int = 12,
    draws: int = 4,
    seed: int = 0,
    rows_name: str = "rows",
) -> Path:
    """Draw the upper halves of the first n rows of x [N, D], and `draws` samples of the lower halves given the upper ones.

    `rows_name` is the name of the rows in the title.

    Raises:
        InputError: The model is not a PixelCNN.
    """
    if not isinstance(model, PixelCNN):
        raise InputError(f"completions: expected a PixelCNN; got {type(model).__name__}")
    x, layout = x[:n], _layout(layout)
    keep = torch.zeros(model.output.image, dtype=torch.bool, device=x.device)
    keep[:, : keep.shape[1] // 2] = True
    rows = [x, x * keep.flatten(), *(model.complete(x, keep.flatten(), seed + i) for i in range(draws))]
    images = torch.cat([layout.images(part, "completions") for part in rows])
    seeds = f"seed{'s' if draws > 1 else ''} {', '.join(str(seed + i) for i in range(draws))}"
    title = f"Lower halves drawn from p(x | upper half): the first {len(x)} {rows_name}, {seeds}"
    return _save_grid(images, len(x), path, title, rows=["data", "given", *["drawn"] * draws])


def analogies(
    model: LabelModel, path: str | Path, layout: Layout | ImageShape, *, rows: int = 10, classes: int = CLASSES, seed: int = 0
) -> Path:
    """Draw class-conditional samples. The noise of the latents is the same in a row, and the class y in a column.

    Raises:
        InputError: The model has no label, or the images have another size.
    """
    if not isinstance(model, LabelModel):
        raise InputError(f"analogies: expected a model with a label; got {type(model).__name__}")
    shown, device = min(classes, model.num_classes), next(model.parameters()).device
    columns = [model.sample(rows, torch.full((rows,), c, device=device), seed) for c in range(shown)]
    images = _layout(layout).images(torch.stack(columns, 1).flatten(0, 1), "analogies")  # row by row
    title = f"{'Draws' if model.autoregressive else 'Means'} of p(x | y, z): each row has one draw of z, seed {seed}"
    xlabel = "class y" if shown == model.num_classes else f"class y, {shown} of {model.num_classes}"
    return _save_grid(images, shown, path, title, columns_named=xlabel)


@torch.no_grad()
def z2_grid(
    model: GenerativeModel,
    x: Tensor,
    path: str | Path,
    layout: Layout | ImageShape,
    *,
    y: Tensor | None = None,
    fixed: int = 2,
    n: int = 15,
    seed: int = 0,
    rows_name: str = "rows",
) -> Path:
    """Draw a mesh of a two-dimensional z₂, decoded with the class inferred (left) and with the class `fixed` (right).

    Between them are the means of q(z₂ | x) at x [N, D], coloured by y [N], with the box of the mesh (thesis Fig. 4.9). The noise
    of z₁ and of y is the same in every cell. `rows_name` is the name of the rows in the title.

    Raises:
        InputError: The model is not a CaGeM with a z₂ of size 2, or `fixed` is not one of its classes.
    """
    if not isinstance(model, CaGeM) or model.latent[1] != 2:
        raise InputError(f"z2_grid: expected a CaGeM with a z2 of size 2; got {type(model).__name__}")
    if not 0 <= fixed < model.num_classes:
        raise InputError(f"z2_grid: fixed must be a class, 0..{model.num_classes - 1}; got {fixed}")
    device = next(model.parameters()).device
    points = model.latent_means(x, None, seed)["z2"].double().cpu()
    (left, bottom), (right, top) = points.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), 0).tolist()
    across, down = torch.linspace(left, right, n), torch.linspace(top, bottom, n)
    mesh = torch.stack([across.repeat(n), down.repeat_interleave(n)], 1).to(device, next(model.parameters()).dtype)
    figure = new_figure(15.0, 5.6)
    inferred_axes, space, fixed_axes = figure.subplots(1, 3)
    for axes, label, title in (
        (inferred_axes, None, "Class inferred: y drawn from p(y | z₂)"),
        (fixed_axes, torch.tensor([fixed], device=device), f"Class fixed: y = {fixed}"),
    ):
        cells = torch.cat([model.decode_z2(z2.view(1, 1, 2), Noise(seed), label) for z2 in mesh])
        _show(axes, _tile(_layout(layout).images(cells, "z2_grid"), n))
        axes.set_title(title)
        axes.set_xlabel("first unit of z₂, to the right")
        axes.set_ylabel("second unit of z₂, upwards")
    scatter(space, points.numpy(), None if y is None else y.cpu().numpy())
    space.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], color="black", linewidth=1.2)
    space.set_xlabel("first unit of z₂")
    space.set_ylabel("second unit of z₂")
    space.set_title("Means of q(z₂ | x), and the box of the mesh")
    _title(figure, f"{n} × {n} values of z₂ decoded, seed {seed}, and {len(x)} {rows_name}")
    if y is not None:
        legend_beside(figure, space, "class", markerscale=2.0)
    return save(figure, path)


def _layout(layout: Layout | ImageShape) -> Layout:
    return layout if isinstance(layout, Layout) else Layout(layout)


def _tile(images: Tensor, columns: int) -> np.ndarray:
    """[N, C, H, W] -> one image [rows·(H+1), columns·(W+1), C], with grey lines between the cells, and dark ink on white."""
    n, colors, height, width = images.shape
    rows = math.ceil(n / columns)
    ink = 1.0 - images if colors == 1 else images
    grid = torch.ones(rows * columns, colors, height + 1, width + 1)
    grid[:n] = 0.8
    grid[:n, :, :height, :width] = ink
    tiled = grid.view(rows, columns, colors, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * (height + 1), columns * (width + 1), colors)[:-1, :-1].numpy()


def _show(axes: Axes, image: np.ndarray, *, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """Draw the image. `rows` and `columns` are the names of its rows and columns of cells."""
    axes.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([(i + 0.5) / len(columns) * image.shape[1] for i in range(len(columns))], columns)
    axes.set_yticks([(i + 0.5) / len(rows) * image.shape[0] for i in range(len(rows))], rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _save_grid(
    images: Tensor, columns: int, path: str | Path, title: str, *, rows: Sequence[str] = (), columns_named: str = ""
) -> Path:
    """Draw images [N, C, H, W] in rows of `columns`, with a name for each row, or numbers for the columns and their name."""
    wide = images.shape[3] / images.shape[2]
    height = CELL * math.ceil(len(images) / columns) + 0.35 + 0.4 * bool(columns_named)
    figure = new_figure(CELL * columns * wide + 0.9 * bool(rows), height)
    axes = figure.subplots()
    _show(axes, _tile(images, columns), rows=rows, columns=[str(i) for i in range(columns)] if columns_named else [])
    axes.set_xlabel(columns_named)
    _title(figure, title)
    return save(figure, path)


def _title(figure: Figure, text: str) -> None:
    """Write a title over the whole figure, in as many lines as it needs, and make the figure higher for it."""
    text = fold(text, figure.get_figwidth(), 11)
    figure.set_figheight(figure.get_figheight() + 0.18 * text.count("\n"))
    figure.suptitle(text, fontsize=11)


def _latents(model: GenerativeModel) -> str:
    """What p(x | ·) takes."""
    return "z" if model.num_classes is None else "y, z"

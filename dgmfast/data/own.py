"""A user's own data: tensors, arrays, torch data sets, and files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Kind, Split
from dgmfast.data.files import read_bytes
from dgmfast.errors import InputError
from dgmfast.files import write_atomically

SPLITS = ("train", "valid", "test")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
META = "dgmfast"  # the array in a saved data set that describes the others


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    name: str = "own",
    kind: Kind | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    split_seed: int = 0,
    image_shape: Sequence[int] | None = None,
    normalize: bool | None = None,
) -> Dataset:
    """A data set from rows, which are divided at random into training, validation and test rows.

    Args:
        x: [N, D], or images [N, H, W] or [N, C, H, W]: a tensor or a numpy array of numbers.
        y: [N] labels of any type, or None. They are numbered in sorted order, and `class_names` keeps them.
        name: The data set's name in logs and titles.
        kind: "binary", "grey", "levels" or "real" (see Dataset). By default "binary" for zeros and ones; "grey" for images with
            one channel that are uint8 or lie in [0, 1]; "levels" for other uint8; else "real".
        split: The fractions of training, validation and test rows. They sum to 1; the one of validation may be 0.
        split_seed: The seed of the division.
        image_shape: (C, H, W) of a row. By default the shape of an image in x, or None for rows [N, D].
        normalize: If true, subtract from each column its mean on the training rows and divide it by its standard deviation. By
            default true for kind "real".

    Raises:
        InputError: A shape, a value, a label or a setting is wrong.
    """
    rows, shape = _rows(x, image_shape)
    labels, class_names = (None, None) if y is None else _labels(y, len(rows))
    parts = _divide(len(rows), split, split_seed)
    splits = {part: Split(rows[i], None if labels is None else labels[i]) for part, i in parts.items()}
    return from_splits(splits, name=name, kind=kind, image_shape=shape, normalize=normalize, class_names=class_names)


def from_splits(
    splits: dict[str, Split],
    *,
    name: str = "own",
    kind: Kind | None = None,
    image_shape: Sequence[int] | None = None,
    normalize: bool | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set from splits that are given: "train", "test" and, if there is one, "valid". Arguments as for `from_arrays`.

    Raises:
        InputError: A split is missing or empty, or the splits do not fit together.
    """
    missing = [part for part in ("train", "test") if part not in splits or not len(splits[part].x)]
    if missing:
        raise InputError(f"{name}: expected training and test rows; got none for {' and '.join(missing)}")
    widths = {part: list(split.x.shape[1:]) for part, split in splits.items()}
    if len({tuple(width) for width in widths.values()}) > 1:
        raise InputError(f"{name}: expected rows of the same width in every split; got {widths}")
    if len({split.y is None for split in splits.values()}) > 1:
        raise InputError(f"{name}: expected labels in every split or in none; got them in some")
    one_channel = image_shape is not None and image_shape[0] == 1
    kind = _kind([split.x for split in splits.values()], one_channel) if kind is None else kind
    if kind not in get_args(Kind):
        raise InputError(f"{name}: kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    normalization = None
    if kind == "levels":
        splits = {part: Split(_as_levels(name, split.x), split.y) for part, split in splits.items()}
    else:
        divisor = 255.0 if kind == "grey" and splits["train"].x.dtype == torch.uint8 else 1.0
        splits = {part: Split(split.x.float() / divisor, split.y) for part, split in splits.items()}
        for part, split in splits.items():
            _check_finite(name, part, split.x)
        if kind == "real" if normalize is None else normalize:
            if kind != "real":
                raise InputError(f"{name}: normalize is for rows of kind real; got {kind}")
            normalization = column_moments(splits["train"].x)
            splits = {part: Split(standardize(split.x, normalization), split.y) for part, split in splits.items()}
    labels = [split.y for split in splits.values() if split.y is not None]
    classes = len(class_names) if class_names else (1 + max(int(y.max()) for y in labels) if labels else None)
    width = splits["train"].x.shape[1]
    return Dataset(
        name,
        splits["train"],
        splits.get("valid"),
        splits["test"],
        image_shape=None if image_shape is None else (image_shape[0], image_shape[1], image_shape[2]),
        kind=kind,
        classes=classes,
        note=f"{name}: {len(splits['train'].x)} training rows of {width} numbers, kind {kind}",
        scale=torch.full((width,), 256.0) if kind == "levels" else None,
        normalization=normalization,
        class_names=None if class_names is None else tuple(class_names),
    )


def from_torch(dataset: Any, **settings: Any) -> Dataset:
    """A data set from a torch Dataset, or from the one of a DataLoader. An item is x, or (x, y).

    All items are read into memory once. The other arguments are those of `from_arrays`.

    Raises:
        InputError: The items are not tensors or arrays of one shape; or as for `from_arrays`.
    """
    dataset = getattr(dataset, "dataset", dataset)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InputError(f"data must be a torch Dataset with a length and items; got {type(dataset).__name__}")
    items = [dataset[i] for i in range(len(dataset))]
    pairs = bool(items) and isinstance(items[0], (tuple, list))
    try:
        x = torch.stack([torch.as_tensor(np.asarray(item[0] if pairs else item)) for item in items])
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"data must have items of one shape, x or (x, y), as tensors or arrays; got {reason}") from error
    y = np.asarray([int(item[1]) for item in items]) if pairs and len(items[0]) > 1 else None
    return from_arrays(x, y, **settings)


def from_file(
    path: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    kind: Kind | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    split_seed: int = 0,
    normalize: bool | None = None,
) -> Dataset:
    """A data set from a file, or from a folder of images.

    - .npz: arrays x and y (y may be missing), or x_train, y_train, x_valid, …, x_test, y_test;
    - .npy: x, [N, D], [N, H, W] or [N, C, H, W];
    - .csv and .parquet: one row per line, a header of names, and numbers in all columns but `label_column`;
    - a folder: images of one size; the names of sub-folders are the labels.

    Args:
        path: The file or folder.
        label_column: The column of labels in a .csv or .parquet file.
        kind: As for `from_arrays`, like the arguments below.
        split: The fractions of training, validation and test rows; not used if the file has splits.
        split_seed: The seed of the division.
        normalize: If true, normalise the columns.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    path = Path(path)
    settings: dict[str, Any] = {"name": path.stem, "kind": kind, "normalize": normalize}
    division: dict[str, Any] = {"split": split, "split_seed": split_seed}
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _from_npz(path, settings, division)
    x, y, shape = _read(path, label_column)
    return from_arrays(x, y, image_shape=shape, **settings, **division)


def rows_like(dataset: Dataset, path: str | os.PathLike[str], label_column: str | None = None) -> Split:
    """All rows of another file, prepared as the rows of `dataset` are, with its normalisation and its numbers for the labels.

    Raises:
        InputError: The file cannot be read, its rows have another width, a value does not fit, or a label is new.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        arrays = _read_npz(path)
        if "x" not in arrays:
            raise InputError(f"{path}: expected an array x, and y if there are labels; got {', '.join(arrays) or 'nothing'}")
        x, y = arrays["x"], arrays.get("y")
    else:
        x, y, _ = _read(path, label_column, optional_label=True)
    rows, _ = _rows(x, None)
    width = dataset.train.x.shape[1]
    if rows.shape[1] != width:
        raise InputError(f"{path}: expected rows of {width} numbers, as in {dataset.name}; got {rows.shape[1]}")
    if dataset.kind == "levels":
        rows = _as_levels(path.name, rows)
    else:
        rows = rows.float() / (255.0 if dataset.kind == "grey" and rows.dtype == torch.uint8 else 1.0)
        _check_finite(path.name, "given", rows)
        if dataset.normalization is not None:
            rows = standardize(rows, dataset.normalization)
    if y is None:
        return Split(rows, None)
    names = dataset.class_names or tuple(map(str, range(dataset.classes or 0)))
    numbers = {name: number for number, name in enumerate(names)}
    text = [str(int(value)) if isinstance(value, (float, np.floating)) else str(value) for value in np.asarray(y).tolist()]
    new = sorted(set(text) - set(names))
    if new:
        raise InputError(f"{path}: expected labels among {', '.join(names)}; got {new[0]!r}")
    return Split(rows, torch.tensor([numbers[value] for value in text], dtype=torch.int64))


def _read(path: Path, label_column: str | None, optional_label: bool = False) -> tuple[Any, Any, tuple[int, int, int] | None]:
    """x, the labels or None, and the image shape or None, of a folder of images, an .npy, a .csv or a .parquet file."""
    suffix = path.suffix.lower()
    if label_column is not None and suffix not in (".csv", ".parquet"):
        raise InputError(f"label_column is for .csv and .parquet files; got {path}")
    if path.is_dir():
        return _read_images(path)
    if suffix == ".npy":
        return _read_npy(path), None, None
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: expected a folder of images, or a file that ends in {', '.join(SUFFIXES)}; got another one")
    header, columns = _read_csv(path) if suffix == ".csv" else _read_parquet(path)
    if optional_label and label_column not in header:
        label_column = None
    x, y = _table(path, header, columns, label_column)
    return x, y, None


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each column, [D] each. A constant column has 1 as its standard deviation."""
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def standardize(x: Tensor, normalization: tuple[Tensor, Tensor]) -> Tensor:
    """(x − mean) / std, for the column moments (mean, std)."""
    mean, std = normalization
    return (x - mean) / std


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set to an .npz file, which `load_saved` reads.

    Raises:
        InputError: The file cannot be written.
    """
    meta: dict[str, Any] = {"name": dataset.name, "kind": dataset.kind, "classes": dataset.classes, "note": dataset.note}
    meta |= {"image_shape": dataset.image_shape, "full_shape": dataset.full_shape, "class_names": dataset.class_names}
    arrays: dict[str, np.ndarray] = {}
    for part in SPLITS:
        split: Split | None = getattr(dataset, part)
        if split is not None:
            arrays[f"x_{part}"] = split.x.cpu().numpy()
            if split.y is not None:
                arrays[f"y_{part}"] = split.y.cpu().numpy()
    for field in ("pixels", "scale", "labelled"):
        value: Tensor | None = getattr(dataset, field)
        if value is not None:
            arrays[field] = value.cpu().numpy()
    if dataset.normalization is not None:
        arrays["mean"], arrays["std"] = (t.numpy() for t in dataset.normalization)
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def load_saved(path: Path) -> Dataset:
    """Read a data set that `save` wrote.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    arrays = _read_npz(path)
    try:
        meta = json.loads(arrays[META].tobytes())
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items() if name != META}
        splits = {part: Split(tensors[f"x_{part}"], tensors.get(f"y_{part}")) for part in SPLITS if f"x_{part}" in tensors}
        others: dict[str, Any] = {field: tensors.get(field) for field in ("pixels", "scale", "labelled")}
        for field in ("image_shape", "full_shape", "class_names"):
            others[field] = None if meta[field] is None else tuple(meta[field])
        return Dataset(
            meta["name"],
            splits["train"],
            splits.get("valid"),
            splits["test"],
            kind=meta["kind"],
            classes=meta["classes"],
            note=meta["note"],
            normalization=(tensors["mean"], tensors["std"]) if "mean" in tensors else None,
            **others,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a data set that dgmfast saved; got something else ({error})") from error


def _rows(x: Any, image_shape: Sequence[int] | None) -> tuple[Tensor, tuple[int, int, int] | None]:
    """x as rows [N, D], and the image shape of a row."""
    try:
        t = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(np.asarray(x)))
    except TypeError as error:
        raise InputError(f"x must be a tensor or an array of numbers; got {str(error).split('.')[0]}") from error
    if t.is_complex() or t.dim() not in (2, 3, 4) or 0 in t.shape:
        raise InputError(f"x must be real numbers of shape [N, D], [N, H, W] or [N, C, H, W]; got {t.dtype} {list(t.shape)}")
    if t.dim() > 2:
        c, h, w = (1, *t.shape[1:]) if t.dim() == 3 else tuple(t.shape[1:])
        if image_shape is not None and tuple(image_shape) != (c, h, w):
            raise InputError(f"image_shape must be {[c, h, w]}, that of x; got {list(image_shape)}")
        return t.flatten(1), (c, h, w)
    if image_shape is None:
        return t, None
    shape = tuple(image_shape)
    if len(shape) != 3 or any(size < 1 for size in shape) or int(np.prod(shape)) != t.shape[1]:
        raise InputError(f"image_shape must be (C, H, W) of {t.shape[1]} numbers; got {list(shape)}")
    return t, (shape[0], shape[1], shape[2])


def _labels(y: Any, n: int) -> tuple[Tensor, tuple[str, ...]]:
    """The labels as numbers of their sorted values, [N] int64, and these values as text."""
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.shape != (n,):
        raise InputError(f"y must be labels of shape [{n}], one for each row of x; got {list(values.shape)}")
    if np.issubdtype(values.dtype, np.floating):
        wrong = ~(np.isfinite(values) & (values == np.round(values)))
        if wrong.any():
            row = int(wrong.nonzero()[0][0])
            raise InputError(f"y must be whole numbers or text; got {values[row]} in row {row}")
        values = values.astype(np.int64)
    names, numbers = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"y must have at least two classes; got {len(names)}: {names[0] if len(names) else 'none'}")
    return torch.from_numpy(numbers.astype(np.int64)), tuple(str(name) for name in names)


def _divide(n: int, split: Sequence[float], seed: int) -> dict[str, Tensor]:
    """The rows of each split, at least one of each that has a fraction."""
    fractions = tuple(split)
    if len(fractions) != 3 or any(not 0.0 <= f <= 1.0 for f in fractions) or abs(sum(fractions) - 1.0) > 1e-6:
        raise InputError(f"split must be three fractions of training, validation and test rows that sum to 1; got {list(split)}")
    if not fractions[0] or not fractions[2]:
        raise InputError(f"split must leave training and test rows; got {list(split)}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first, second = round(fractions[0] * n), round((fractions[0] + fractions[1]) * n)
    parts = {"train": order[:first], "valid": order[first:second], "test": order[second:]}
    empty = [part for part, f in zip(SPLITS, fractions, strict=True) if f and not len(parts[part])]
    if empty:
        raise InputError(f"expected enough rows for the split {list(split)}; got {n}, which leave none for {' and '.join(empty)}")
    return {part: rows.sort().values for part, rows in parts.items() if len(rows)}


def _kind(parts: Sequence[Tensor], one_channel: bool) -> Kind:
    """The kind of rows for which none is declared; one_channel: they are images with one channel."""
    if all(bool(((x == 0) | (x == 1)).all()) for x in parts):
        return "binary"
    if all(x.dtype == torch.uint8 for x in parts):
        return "grey" if one_channel else "levels"
    return "grey" if one_channel and all(bool(((x >= 0) & (x <= 1)).all()) for x in parts) else "real"


def _as_levels(name: str, x: Tensor) -> Tensor:
    """x as uint8 levels."""
    wrong = ~((x >= 0) & (x <= 255) & (x == x.round())) if x.is_floating_point() else (x < 0) | (x > 255)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(f"{name}: x must hold whole levels 0 … 255 for kind levels; got {x[row, column].item():g} in row {row}")
    return x.to(torch.uint8)


def _check_finite(name: str, part: str, x: Tensor) -> None:
    wrong = ~x.isfinite()
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{name}: x must be finite; got {x[row, column].item()} in row {row}, column {column} of the {part} rows"
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive}
    except Exception as error:  # a damaged archive makes numpy and zipfile raise almost anything
        raise InputError(f"{path}: expected a whole .npz archive of numbers; got {type(error).__name__}: {error}") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
        return array
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: expected an .npy array of numbers; got {error}") from error


def _from_npz(path: Path, settings: dict[str, Any], division: dict[str, Any]) -> Dataset:
    arrays = _read_npz(path)
    if META in arrays:
        return load_saved(path)
    found = {part: arrays[f"x_{part}"] for part in SPLITS if f"x_{part}" in arrays}
    if not found:
        if "x" not in arrays:
            raise InputError(f"{path}: expected an array x, or x_train and x_test; got {', '.join(arrays) or 'nothing'}")
        return from_arrays(arrays["x"], arrays.get("y"), **settings, **division)
    rows = {part: _rows(x, None) for part, x in found.items()}
    labels: dict[str, Tensor] = {}
    class_names = None
    if any(f"y_{part}" in arrays for part in found):
        lacking = [f"y_{part}" for part in found if f"y_{part}" not in arrays]
        if lacking:
            raise InputError(f"{path}: expected labels for every split or for none; got no {' and no '.join(lacking)}")
        sizes = [len(x) for x, _ in rows.values()]
        joint, class_names = _labels(np.concatenate([arrays[f"y_{part}"] for part in found]), sum(sizes))
        labels = dict(zip(found, joint.split(sizes), strict=True))
    splits = {part: Split(x, labels.get(part)) for part, (x, _) in rows.items()}
    shape = next(iter(rows.values()))[1]
    return from_splits(splits, image_shape=shape, class_names=class_names, **settings)


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the columns, as text."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text; got byte {error.start} of something else") from error
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if len(lines) < 2:
        raise InputError(f"{path}: expected a header and at least one row; got {len(lines)} lines")
    header = [name.strip() for name in lines[0]]
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise InputError(f"{path}: expected {len(header)} values in row {number}; got {len(line)}")
    return header, [list(column) for column in zip(*lines[1:], strict=True)]


def _read_parquet(path: Path) -> tuple[list[str], list[Any]]:
    """The header and the columns."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading a .parquet file needs pyarrow; install it with `pip install pyarrow`") from error
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(read_bytes(path)))
    except Exception as error:  # a damaged file makes pyarrow raise several kinds
        raise InputError(f"{path}: expected a whole .parquet file; got {str(error).splitlines()[0]}") from error
    return list(table.column_names), [column.to_pylist() for column in table.columns]


def _table(path: Path, header: list[str], columns: list[Any], label_column: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers [N, D], and the labels."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}: expected columns of different names; got {twice!r} twice")
    if label_column is not None and label_column not in header:
        raise InputError(f"{path}: label_column must be one of {', '.join(header)}; got {label_column!r}")
    x, y = [], None
    for name, column in zip(header, columns, strict=True):
        if name == label_column:
            y = np.asarray([str(value).strip() for value in column])
            continue
        numbers = np.empty(len(column), dtype=np.float64)
        for row, value in enumerate(column):
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError):
                hint = "" if label_column else "; name the column of labels with label_column (--label-column)"
                got = "nothing" if value is None or str(value).strip() == "" else repr(value)[:50]
                raise InputError(f"{path}: expected a number in row {row + 1}, column {name!r}; got {got}{hint}") from None
        x.append(numbers)
    if not x:
        raise InputError(f"{path}: expected a column of numbers beside the labels; got none")
    return np.stack(x, 1), y


def _read_images(folder: Path) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int, int]]:
    """uint8 levels [N, C·H·W], the names of the sub-folders as labels, and (C, H, W)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"{folder}: reading images needs Pillow; install it with `pip install pillow`") from error
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise InputError(f"{folder}: expected images ({', '.join(IMAGES)}) in the folder or its sub-folders; found none")
    images, modes = [], set()
    for path in paths:
        try:
            with Image.open(path) as image:
                modes.add("L" if image.mode in ("1", "L", "I;16", "LA") else "RGB")
                images.append(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: expected an image; got {error}") from error
        if images[-1].size != images[0].size:
            size, first = images[-1].size, images[0].size
            raise InputError(
                f"{path}: expected an image of {first[0]} x {first[1]} pixels, as {paths[0].name}; got {size[0]} x {size[1]}"
            )
    arrays = np.stack([np.asarray(image) for image in images])  # [N, H, W, 3]
    channels = 1 if modes == {"L"} else 3
    arrays = arrays[..., :channels].transpose(0, 3, 1, 2)
    classes = {path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    direct = [path for path in paths if path.parent == folder]
    if classes and direct:
        raise InputError(
            f"{folder}: expected all images in sub-folders, which name the labels, or none; got {direct[0].name} beside them"
        )
    y = np.asarray([path.relative_to(folder).parts[0] for path in paths]) if len(classes) > 1 else None
    _, c, h, w = arrays.shape
    return arrays.reshape(len(arrays), -1), y, (c, h, w)

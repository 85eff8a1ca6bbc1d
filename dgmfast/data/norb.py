"""Small NORB, stereo images of toys, read from its binary matrices.

A matrix consists of a magic number, the number of dimensions, the sizes and the elements, all little-endian.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import grey_rows, label_rows, locate, read_unzipped
from dgmfast.errors import InputError

FOLDER = "norb"
FILES = "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat", "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat"
TYPES = {  # dtypes by magic number; packed matrices, 0x1E3D4C52, are not documented
    0x1E3D4C51: "<f4",
    0x1E3D4C53: "<f8",
    0x1E3D4C54: "<i4",
    0x1E3D4C55: "|u1",
    0x1E3D4C56: "<i2",
}
MIN_SIZES = 3  # a header holds at least three sizes, even for fewer dimensions
MAX_DIMENSIONS = 8
CLASSES = 5
ORIGINAL_SIDE, SIDE = 96, 32
BLOCK = ORIGINAL_SIDE // SIDE
LEVELS = 256.0
CHUNK = 1024  # number of pairs in memory at a time, because their sums need four bytes per pixel


def load_norb(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Small NORB as pairs of 32 x 32 levels: 24300 training and 24300 test rows of 2048, the first camera before the second.

    Reads the images (dat) and the labels (cat) from the files smallnorb-5x…-{training,testing}-{dat,cat}.mat, plain or gzipped.
    Models see the levels with uniform noise, divided by 256, as in Maaløe et al. (2016), after Miyato et al. (2015). Classes: 0
    animal, 1 human, 2 plane, 3 truck, 4 car. Source: LeCun, Huang and Bottou (2004).
    """
    train, test = (
        Split(torch.from_numpy(images.reshape(len(images), -1)), labels) for images, labels in _read_splits("norb", data_dir)
    )
    shape = 2, SIDE, SIDE
    note = "means of 3 x 3 pixels, rounded to levels, with uniform noise and divided by 256"
    scale = torch.full((math.prod(shape),), LEVELS)
    return Dataset("norb", train, None, test, shape, kind="levels", classes=CLASSES, note=note, scale=scale)


def load_norb_single(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Small NORB through its first camera, in [0, 1]: 24300 training and 24300 test rows of 1024, for a Gaussian p(x|z).

    The LVAE of the thesis is trained on 32 x 32 images in [0, 1] without noise (Sønderby et al. 2016).
    """
    train, test = (Split(grey_rows(images[:, 0]), labels) for images, labels in _read_splits("norb-single", data_dir))
    note = "means of 3 x 3 pixels, not the resized copy that the thesis used: likelihoods are near, not equal, to published ones"
    return Dataset("norb-single", train, None, test, (1, SIDE, SIDE), kind="real", classes=CLASSES, note=note)


def _read_splits(name: str, data_dir: str | os.PathLike[str] | None) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield the images, uint8 [N, 2, 32, 32], and the labels, int64 [N], of the training and of the test split."""
    places = [[_locate(name, data_dir, file.format(content)) for content in ("dat", "cat")] for file in FILES]
    for images_path, labels_path in places:
        labels = read_matrix(labels_path)
        if labels.ndim != 1 or not np.isin(labels, np.arange(CLASSES)).all():
            raise InputError(
                f"{labels_path}: expected labels 0 to {CLASSES - 1} [N]; "
                f"got {labels.dtype} {list(labels.shape)} from {labels.min()} to {labels.max()}"
            )
        images = read_matrix(images_path)
        expected = (len(labels), 2, ORIGINAL_SIDE, ORIGINAL_SIDE)
        if images.dtype != np.uint8 or images.shape != expected:
            raise InputError(
                f"{images_path}: expected images as uint8 {list(expected)}, a pair for each label in {labels_path.name}; "
                f"got {images.dtype} {list(images.shape)}"
            )
        yield _shrink(images), label_rows(labels)


def _locate(name: str, data_dir: str | os.PathLike[str] | None, file: str) -> Path:
    return locate(name, data_dir, FOLDER, f"{file}.gz", file)


def read_matrix(path: Path) -> np.ndarray:
    """Read a binary matrix, plain or gzipped, into a read-only array with the type and sizes in its header.

    Raises:
        InputError: The file is missing, too short, too long, or not such a matrix.

    Source: "The small NORB dataset, v1.0", file formats.
    """
    raw = read_unzipped(path)
    magic, dimensions = struct.unpack_from("<Ii", raw) if len(raw) >= 8 else (None, 0)
    if magic not in TYPES or not 1 <= dimensions <= MAX_DIMENSIONS:
        got = raw[:8].hex(" ") or "an empty file"
        raise InputError(
            f"{path}: expected a binary matrix (first bytes 51, 53, 54, 55 or 56, then 4c 3d 1e, then 1 to {MAX_DIMENSIONS} "
            f"dimensions in 4 bytes); got {got}"
        )
    header = 8 + 4 * max(dimensions, MIN_SIZES)
    if len(raw) < header:
        raise InputError(f"{path}: expected {header} bytes of header for {dimensions} dimensions; got {len(raw)}")
    shape = struct.unpack_from(f"<{dimensions}i", raw, 8)
    if min(shape) < 1:
        raise InputError(f"{path}: expected positive sizes in the header; got {list(shape)}")
    kind = np.dtype(TYPES[magic])
    expected = header + math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise InputError(f"{path}: expected {expected} bytes for {kind.name} {list(shape)} in the header; got {len(raw)}")
    return np.frombuffer(raw, kind, offset=header).reshape(shape)


def _shrink(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 2, 96, 96] -> uint8 [N, 2, 32, 32]: the mean of each 3 x 3 block, rounded to the nearest level."""
    small = np.empty((len(images), 2, SIDE, SIDE), np.uint8)
    for start in range(0, len(images), CHUNK):
        blocks = images[start : start + CHUNK].reshape(-1, 2, SIDE, BLOCK, SIDE, BLOCK)
        area = BLOCK * BLOCK
        small[start : start + CHUNK] = (blocks.sum((3, 5), dtype=np.int32) + area // 2) // area
    return small

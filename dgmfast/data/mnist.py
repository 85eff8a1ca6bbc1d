"""MNIST in grey levels, and Larochelle's fixed binarisation of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import grey_rows, label_rows, locate, read_npz
from dgmfast.data.idx import read_idx
from dgmfast.errors import InputError

FOLDER = "mnist"
MD5 = {  # md5 of the uncompressed bytes, because copies differ in their compression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
STATIC_ROWS = {"train": 50000, "valid": 10000, "test": 10000}
STATIC_PACKED = "binarized_mnist_packed.npz"
PIXELS = 784
MIN_STD = 0.1
KEPT = 444


def mnist_file(data_dir: str | os.PathLike[str] | None, name: str) -> Path:
    """The path of the idx file `name`. The .gz comes first, because download_mnist writes it."""
    return locate("mnist", data_dir, FOLDER, f"{name}.gz", name, hint="; dgmfast.data.download_mnist(dir) fetches it")


def load_mnist(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """MNIST: 60000 training and 10000 test rows of 784 grey levels, with 10 classes. The md5 of each file is checked.

    Reads the four idx files, plain or gzipped, which `download_mnist` downloads.

    Raises:
        InputError: A file is missing, damaged, or not the published one.
    """
    arrays = [read_idx(mnist_file(data_dir, name), md5) for name, md5 in MD5.items()]
    train, test = (Split(grey_rows(x), label_rows(y)) for x, y in (arrays[:2], arrays[2:]))
    return Dataset("mnist", train, None, test, image_shape=(1, 28, 28), kind="grey", classes=10, note="")


def load_mnist_444(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """MNIST without the pixels whose grey levels have a standard deviation below 0.1 on the training images: 444 columns.

    Reads the files of `load_mnist`. `full_images(dataset.pixels, dataset.full_shape, x)` puts rows back into images. Source:
    Maaløe et al. (2016), section 3.
    """
    mnist = load_mnist(data_dir)
    pixels = (mnist.train.x.std(0) >= MIN_STD).nonzero().flatten()  # [444]; no pixel is within 5e-4 of MIN_STD
    if len(pixels) != KEPT:
        raise InputError(f"load('mnist-444'): expected {KEPT} pixels with a standard deviation of {MIN_STD}; got {len(pixels)}")
    train, test = (Split(part.x[:, pixels].contiguous(), part.y) for part in (mnist.train, mnist.test))
    note = f"{KEPT} of {PIXELS} pixels: likelihoods are not comparable with those of whole images"
    return Dataset(
        "mnist-444", train, None, test, None, kind="grey", classes=10, note=note, pixels=pixels, full_shape=mnist.image_shape
    )


def load_mnist_static(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """MNIST with one fixed binarisation: 50000 training, 10000 validation and 10000 test rows of zeros and ones.

    A row has 784 pixels and no label. Reads binarized_mnist_packed.npz, or Larochelle's text files
    binarized_mnist_{train,valid,test}.amat. Source: Salakhutdinov and Murray (2008), distributed by Larochelle.
    """
    first = locate("mnist-static", data_dir, "binarized_mnist", STATIC_PACKED, "binarized_mnist_train.amat")
    if first.name == STATIC_PACKED:
        parts = _read_packed(first)
    else:
        parts = [_read_amat(first.with_name(f"binarized_mnist_{part}.amat"), rows) for part, rows in STATIC_ROWS.items()]
    train, valid, test = (Split(x, None) for x in parts)
    note = "fixed binarisation: compare only with results on these same files; rows are not in MNIST's order and have no labels"
    return Dataset("mnist-static", train, valid, test, image_shape=(1, 28, 28), kind="binary", classes=None, note=note)


def _read_packed(path: Path) -> list[Tensor]:
    parts = read_npz(path, *STATIC_ROWS)
    for packed, (part, rows) in zip(parts, STATIC_ROWS.items(), strict=True):
        if packed.dtype != np.uint8 or packed.shape != (rows, PIXELS // 8):
            raise InputError(
                f"{path}: expected {part} as uint8 {[rows, PIXELS // 8]} (packed bits); got {packed.dtype} {list(packed.shape)}"
            )
    return [torch.from_numpy(np.unpackbits(packed, axis=1)).float().contiguous() for packed in parts]


def _read_amat(path: Path, rows: int) -> Tensor:
    x = np.empty((rows, PIXELS), np.uint8)
    count = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                values = line.split()
                if not values:
                    continue
                digits = b"".join(values)
                if len(values) != PIXELS or len(digits) != PIXELS or digits.translate(None, b"01"):
                    raise InputError(
                        f"{path}: expected {PIXELS} values 0 or 1 in line {number}; got {len(values)}: {line[:20]!r}..."
                    )
                if count < rows:
                    x[count] = np.frombuffer(digits, np.uint8)
                count += 1
    except OSError as error:
        raise InputError(f"{path}: expected a readable file; got {error.strerror or error}") from error
    if count != rows:
        raise InputError(f"{path}: expected {rows} rows; got {count}")
    return torch.from_numpy(x - ord("0")).float()

"""MNIST in grey levels, Larochelle's fixed binarisation of it, and the data sets in MNIST's format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import grey_rows, label_rows, locate, read_bytes, read_npz
from dgmfast.data.idx import read_idx
from dgmfast.errors import InputError

FOLDER = "mnist"
MD5 = {  # md5 of the uncompressed bytes, because copies differ in their compression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
GZ_MD5 = {  # md5 of the published .gz files, whose uncompressed bytes have none
    "fashion-mnist": {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "kmnist": {
        "train-images-idx3-ubyte": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte": "7320c461ea6c1c855c0b718fb2a4b134",
    },
}
SHAPES = [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
STATIC_ROWS = {"train": 50000, "valid": 10000, "test": 10000}
STATIC_PACKED = "binarized_mnist_packed.npz"
PIXELS = 784
MIN_STD = 0.1
KEPT = 444


def mnist_file(data_dir: str | os.PathLike[str] | None, name: str) -> Path:
    """The path of MNIST's idx file `name`. The .gz comes first, because download_mnist writes it."""
    return idx_file("mnist", data_dir, name, (FOLDER, "MNIST/raw"), "; dgmfast.data.download_mnist(dir) fetches it")


def idx_file(dataset: str, data_dir: str | os.PathLike[str] | None, name: str, folders: tuple[str, ...], hint: str = "") -> Path:
    """The path of the idx file `name`, gzipped or not, also under the name `train-images.idx3-ubyte` of some unzip programs.

    It is looked for in `folders` of the data folder, of which torchvision's is one, and in the data folder itself.
    """
    dotted = name.replace("-idx", ".idx")
    return locate(dataset, data_dir, folders, f"{name}.gz", name, dotted, f"{dotted}.gz", hint=hint)


def _load_like_mnist(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    folders: tuple[str, ...],
    class_names: tuple[str, ...],
    md5: Mapping[str, str],
) -> Dataset:
    """A data set of four idx files of MNIST's shapes. The md5 of a .gz file is checked."""
    arrays = []
    for (file, digest), shape in zip(md5.items(), SHAPES, strict=True):
        path = idx_file(name, data_dir, file, folders)
        if path.suffix == ".gz" and (got := hashlib.md5(read_bytes(path), usedforsecurity=False).hexdigest()) != digest:
            raise InputError(f"{path}: expected md5 {digest}, of the published file of {name}; got {got}")
        array = read_idx(path)
        if array.shape != shape or (array.ndim == 1 and array.max() >= len(class_names)):
            raise InputError(f"{path}: expected {list(shape)} of {name}; got {list(array.shape)} up to {array.max()}")
        arrays.append(array)
    train, test = (Split(grey_rows(x), label_rows(y)) for x, y in (arrays[:2], arrays[2:]))
    return Dataset(name, train, None, test, (1, 28, 28), "grey", len(class_names), note="", class_names=class_names)


def load_fashion_mnist(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Fashion-MNIST: 60000 training and 10000 test rows of 784 grey levels, with 10 classes.

    Reads the four idx files from the folder fashion-mnist, or from torchvision's FashionMNIST/raw. The md5 of a .gz file is
    checked; files that are not compressed are checked for their shapes. Source: Xiao, Rasul and Vollgraf (2017).

    Raises:
        InputError: A file is missing, damaged, or not the published one.
    """
    folders = "fashion-mnist", "fashion", "FashionMNIST/raw"
    return _load_like_mnist("fashion-mnist", data_dir, folders, CLOTHES, GZ_MD5["fashion-mnist"])


def load_kmnist(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Kuzushiji-MNIST: 60000 training and 10000 test rows of 784 grey levels, with 10 classes.

    Reads the four idx files from the folder kmnist, or from torchvision's KMNIST/raw. Checks as for `load_fashion_mnist`. Source:
    Clanuwat et al. (2018).

    Raises:
        InputError: A file is missing, damaged, or not the published one.
    """
    return _load_like_mnist("kmnist", data_dir, ("kmnist", "KMNIST/raw"), KUZUSHIJI, GZ_MD5["kmnist"])


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

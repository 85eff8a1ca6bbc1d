"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgmfast.data.dataset import Dataset
from dgmfast.data.digits import load_digits
from dgmfast.data.mnist import load_fashion_mnist, load_kmnist, load_mnist, load_mnist_444, load_mnist_static
from dgmfast.data.norb import load_norb, load_norb_single
from dgmfast.data.omniglot import load_omniglot, load_omniglot_burda
from dgmfast.data.own import SUFFIXES, from_file
from dgmfast.data.svhn import load_svhn, load_svhn_train
from dgmfast.data.toys import load_moons, load_potential
from dgmfast.errors import InputError

READERS = {
    "digits": lambda data_dir: load_digits(),
    "moons": lambda data_dir: load_moons(),
    "potential": lambda data_dir: load_potential(),
    "mnist": load_mnist,
    "mnist-444": load_mnist_444,
    "mnist-static": load_mnist_static,
    "fashion-mnist": load_fashion_mnist,
    "kmnist": load_kmnist,
    "omniglot": load_omniglot,
    "omniglot-burda": load_omniglot_burda,
    "svhn": load_svhn,
    "svhn-train": load_svhn_train,
    "norb": load_norb,
    "norb-single": load_norb_single,
}

# For each data set, one line on what it is, and one on how to get it.
SOURCES = {
    "digits": ("1797 handwritten digits of 8 x 8", "comes with scikit-learn"),
    "moons": ("two half moons in the plane", "is drawn"),
    "potential": ("no data: the ring with two modes that `potential` fits", "is part of the model"),
    "mnist": ("70000 handwritten digits of 28 x 28", "python -c 'from dgmfast import data; data.download_mnist(\"DIR\")'"),
    "mnist-444": ("MNIST without the 340 pixels that hardly vary", "the files of mnist"),
    "mnist-static": ("MNIST in one fixed binarisation", "binarized_mnist_{train,valid,test}.amat, by Larochelle"),
    "fashion-mnist": ("70000 images of clothes of 28 x 28", "the four idx files, by Zalando Research, in DIR/fashion-mnist"),
    "kmnist": ("70000 Kuzushiji characters of 28 x 28", "the four idx files, by the ROIS-DS CODH, in DIR/kmnist"),
    "omniglot": ("32460 characters of 28 x 28", "omniglot_28x28_area.npz: images, uint8 [characters, 20, 28, 28], and alphabet"),
    "omniglot-burda": ("OMNIGLOT as in the IWAE paper", "chardata.mat, by Burda"),
    "svhn": ("house numbers in colour, 32 x 32", "train_32x32.mat, test_32x32.mat and extra_32x32.mat"),
    "svhn-train": ("SVHN without its extra images", "train_32x32.mat and test_32x32.mat"),
    "norb": ("small NORB, pairs of 32 x 32", "smallnorb-5x…-{training,testing}-{dat,cat}.mat"),
    "norb-single": ("small NORB, the first camera", "the files of norb"),
}


def names() -> list[str]:
    """The names that `load` knows."""
    return list(READERS)


def describe(name: str) -> tuple[str, str]:
    """What a data set is, and how to get it."""
    return SOURCES[name]


def is_path(name: str) -> bool:
    """True if `name` is the path of a user's own file or folder. The name of a known data set is none, whatever lies here."""
    if name in READERS:
        return False
    return name.lower().endswith(SUFFIXES) or "/" in name or os.sep in name or Path(name).is_dir()


def load(name: str, data_dir: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None) -> Dataset:
    """Read a data set by its name, or a file or folder of your own.

    The data sets "digits", "moons" and "potential" need no folder.

    Args:
        name: One of `names()`; or the path of an .npz, .npy, .csv or .parquet file, or of a folder of images.
        data_dir: The folder of the data sets; by default that of the environment variable DGMFAST_DATA_DIR.
        options: For a path, the arguments of `from_file` by name.

    Raises:
        InputError: The name is unknown, a folder or file is missing, or a file has other content than expected.
    """
    options = options or {}
    if name in READERS:
        if options:
            raise InputError(f"load({name!r}): {', '.join(options)} are for files of your own; got a known data set")
        return READERS[name](data_dir)
    if not is_path(name):
        raise InputError(f"load: name must be one of {', '.join(READERS)}, or the path of a file or folder; got {name!r}")
    if not Path(name).exists():
        raise InputError(f"load: expected the path of a file or folder; there is no {name}")
    return from_file(name, **options)

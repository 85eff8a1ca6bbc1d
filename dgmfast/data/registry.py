"""Data sets by name."""

from __future__ import annotations

import os

from dgmfast.data.dataset import Dataset
from dgmfast.data.digits import load_digits
from dgmfast.data.mnist import load_mnist, load_mnist_444, load_mnist_static
from dgmfast.data.norb import load_norb, load_norb_single
from dgmfast.data.omniglot import load_omniglot, load_omniglot_burda
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
    "omniglot": load_omniglot,
    "omniglot-burda": load_omniglot_burda,
    "svhn": load_svhn,
    "svhn-train": load_svhn_train,
    "norb": load_norb,
    "norb-single": load_norb_single,
}


def names() -> list[str]:
    """The names of the data sets that `load` can read."""
    return list(READERS)


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Read a data set by name.

    Args:
        name: One of `names()`.
        data_dir: The folder of the data sets; by default that of DGMFAST_DATA_DIR. "digits", "moons" and "potential" need no
            folder.

    Raises:
        InputError: The name is unknown, a folder or a file is missing, or a file has the wrong content.
    """
    if name not in READERS:
        raise InputError(f"load: name must be one of {', '.join(READERS)}; got {name!r}")
    return READERS[name](data_dir)

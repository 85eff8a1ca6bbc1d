"""OMNIGLOT at 28 x 28: area-averaged from the originals, or the copy that Burda et al. published with the IWAE."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import grey_rows, label_rows, locate, read_mat, read_npz
from dgmfast.errors import InputError

FOLDER = "omniglot"
AREA = "omniglot_28x28_area.npz"
CHARDATA = "chardata.mat"
DRAWERS, TRAIN_DRAWERS = 20, 15
SIDE = 28
ALPHABETS = 50


def load_omniglot(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """OMNIGLOT, area-averaged to 28 x 28, where ink has high values. y is the alphabet. Drawers 0-14 train, and 15-19 test.

    Reads omniglot_28x28_area.npz. Rows are ordered by character, then by drawer. Source: Lake, Salakhutdinov and Tenenbaum
    (2015).
    """
    path = locate("omniglot", data_dir, FOLDER, AREA)
    images, alphabet = read_npz(path, "images", "alphabet")
    expected = (len(alphabet) if alphabet.ndim == 1 else -1, DRAWERS, SIDE, SIDE)
    if images.dtype != np.uint8 or images.shape != expected:
        raise InputError(
            f"{path}: expected images as uint8 [characters, {DRAWERS}, {SIDE}, {SIDE}] with one alphabet per character; "
            f"got {images.dtype} {list(images.shape)} and alphabet {list(alphabet.shape)}"
        )
    if not np.issubdtype(alphabet.dtype, np.integer) or not np.isin(alphabet, np.arange(ALPHABETS)).all():
        raise InputError(
            f"{path}: expected integers 0 to {ALPHABETS - 1} in alphabet; got {alphabet.dtype} up to {alphabet.max()}"
        )

    def split(part: np.ndarray) -> Split:  # [characters, drawers, 28, 28]
        return Split(grey_rows(part.reshape(-1, SIDE * SIDE)), label_rows(np.repeat(alphabet, part.shape[1])))

    note = (
        "area-averaged to 28 x 28 from the originals, not Burda's chardata.mat and not its split: "
        "likelihoods are near, not equal, to published OMNIGLOT numbers"
    )
    return Dataset(
        "omniglot",
        train=split(images[:, :TRAIN_DRAWERS]),
        valid=None,
        test=split(images[:, TRAIN_DRAWERS:]),
        image_shape=(1, SIDE, SIDE),
        kind="grey",
        classes=ALPHABETS,
        note=note,
    )


def load_omniglot_burda(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """OMNIGLOT as in the IWAE paper, from chardata.mat. y is the alphabet.

    Each column of the file is an image in column-major (Fortran) order. The rows returned here are row-major like those of MNIST,
    so that x.view(-1, 28, 28) is upright. Source: Burda, Grosse and Salakhutdinov (2016), github.com/yburda/iwae.
    """
    path = locate("omniglot-burda", data_dir, FOLDER, CHARDATA)
    mat = read_mat("omniglot-burda", path, "data", "target", "testdata", "testtarget")
    splits = []
    for images, one_hot in (("data", "target"), ("testdata", "testtarget")):
        x = _upright(path, images, mat[images])
        splits.append(Split(x, _from_one_hot(path, one_hot, mat[one_hot], len(x))))
    train, test = splits
    return Dataset("omniglot-burda", train, None, test, image_shape=(1, SIDE, SIDE), kind="grey", classes=ALPHABETS, note="")


def _upright(path: Path, key: str, columns: np.ndarray) -> Tensor:
    """Column-major images [784, N] -> row-major float32 [N, 784]."""
    if columns.ndim != 2 or columns.shape[0] != SIDE * SIDE or not np.issubdtype(columns.dtype, np.number):
        raise InputError(f"{path}: expected {key} as numbers [{SIDE * SIDE}, N]; got {columns.dtype} {list(columns.shape)}")
    inside = (columns >= 0) & (columns <= 1)  # also false for NaN
    if not inside.all():
        column = int(np.argmin(inside.all(axis=0)))
        raise InputError(f"{path}: expected {key} in [0, 1]; got a value outside in column {column}")
    images = columns.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32).reshape(-1, SIDE * SIDE))


def _from_one_hot(path: Path, key: str, one_hot: np.ndarray, columns: int) -> Tensor:
    """One-hot columns [50, N] -> int64 [N]."""
    if one_hot.shape != (ALPHABETS, columns):
        raise InputError(f"{path}: expected {key} as [{ALPHABETS}, {columns}], one column per image; got {list(one_hot.shape)}")
    hot = one_hot == 1
    wrong = (hot.sum(axis=0) != 1) | ((one_hot != 0) & ~hot).any(axis=0)
    if wrong.any():
        raise InputError(f"{path}: expected a single 1 in each column of {key}; got otherwise in column {int(np.argmax(wrong))}")
    return label_rows(hot.argmax(axis=0))

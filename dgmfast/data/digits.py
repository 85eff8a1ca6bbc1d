"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import label_rows
from dgmfast.errors import InputError

TRAIN_ROWS = 1500


def load_digits() -> Dataset:
    """1797 digits with 8 x 8 grey levels: 1500 training and 297 test rows, always split in the same way.

    It needs scikit-learn and no files.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(f"load('digits'): the digits come with scikit-learn, which must be installed; got {error}") from error
    levels, labels = datasets.load_digits(return_X_y=True)  # [1797, 64] 0-16, [1797]
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(levels / 16).float()[order]
    y = label_rows(labels)[order]
    train, test = (Split(x[rows], y[rows]) for rows in (slice(TRAIN_ROWS), slice(TRAIN_ROWS, None)))
    note = "scikit-learn's 8 x 8 digits: a quick check, not comparable with MNIST"
    return Dataset("digits", train, None, test, image_shape=(1, 8, 8), kind="grey", classes=10, note=note)

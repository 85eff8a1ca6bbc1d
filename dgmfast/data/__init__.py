"""Readers for the public data sets, toy data, seeded draws and labelled subsets."""

from dgmfast.data._dataset import Dataset, Kind, Split
from dgmfast.data._download import MIRRORS, download_mnist
from dgmfast.data._draws import binarize, few_labels, labelled_rows, redraw
from dgmfast.data._files import default_dir
from dgmfast.data._idx import read_idx
from dgmfast.data._load import load, names
from dgmfast.data._pixels import full_images

__all__ = [
    "MIRRORS",
    "Dataset",
    "Kind",
    "Split",
    "binarize",
    "default_dir",
    "download_mnist",
    "few_labels",
    "full_images",
    "labelled_rows",
    "load",
    "names",
    "read_idx",
    "redraw",
]

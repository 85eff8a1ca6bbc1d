"""Readers for public data sets, toy data, seeded draws and labelled subsets."""

from dgmfast.data.dataset import Dataset, Kind, Split
from dgmfast.data.download import MIRRORS, download_mnist
from dgmfast.data.draws import balanced_subset, binarize, labelled_rows, sample_inputs
from dgmfast.data.files import default_dir
from dgmfast.data.idx import read_idx
from dgmfast.data.pixels import full_images
from dgmfast.data.registry import load, names

__all__ = [
    "MIRRORS",
    "Dataset",
    "Kind",
    "Split",
    "balanced_subset",
    "binarize",
    "default_dir",
    "download_mnist",
    "full_images",
    "labelled_rows",
    "load",
    "names",
    "read_idx",
    "sample_inputs",
]

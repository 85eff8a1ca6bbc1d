"""Readers for public data sets and for a user's own data, toy data, seeded draws and labelled subsets."""

from dgmfast.data.dataset import Dataset, Kind, Split
from dgmfast.data.download import MIRRORS, download_mnist
from dgmfast.data.draws import balanced_subset, binarize, labelled_rows, sample_inputs
from dgmfast.data.files import default_dir
from dgmfast.data.idx import read_idx
from dgmfast.data.own import from_arrays, from_file, from_splits, from_torch, load_saved, rows_like, save
from dgmfast.data.pixels import full_images
from dgmfast.data.registry import describe, is_path, load, names

__all__ = [
    "MIRRORS",
    "Dataset",
    "Kind",
    "Split",
    "balanced_subset",
    "binarize",
    "default_dir",
    "describe",
    "download_mnist",
    "from_arrays",
    "from_file",
    "from_splits",
    "from_torch",
    "full_images",
    "is_path",
    "labelled_rows",
    "load",
    "load_saved",
    "names",
    "read_idx",
    "rows_like",
    "sample_inputs",
    "save",
]

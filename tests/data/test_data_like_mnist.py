"""Tests of the readers of Fashion-MNIST and KMNIST, and of the names that programs give to MNIST's files."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.data_files import idx_bytes, raises

from dgmfast import data
from dgmfast.data import mnist

ROWS = [(6, 28, 28), (6,), (4, 28, 28), (4,)]


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Small images and labels, whose shapes the readers then expect."""
    monkeypatch.setattr(mnist, "SHAPES", ROWS)
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256 if len(shape) > 1 else 10, shape, dtype=np.uint8) for shape in ROWS]


def write(folder: Path, arrays: list[np.ndarray], name: str = "{}") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in zip(mnist.MD5, arrays, strict=True):
        raw = idx_bytes(array)
        (folder / name.format(file)).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


@pytest.mark.parametrize("name, folder", [("fashion-mnist", "FashionMNIST/raw"), ("kmnist", "KMNIST/raw"), ("kmnist", "kmnist")])
def test_unzipped_files_are_checked_for_their_shapes(name: str, folder: str, arrays: list[np.ndarray], tmp_path: Path) -> None:
    write(tmp_path / folder, arrays)
    found = data.load(name, tmp_path)
    assert torch.equal((255 * found.train.x).round().byte().view(6, 28, 28), torch.from_numpy(arrays[0]))
    assert found.test.y.tolist() == arrays[3].tolist() and len(found.class_names) == 10
    write(tmp_path / folder, [arrays[0][:5], *arrays[1:]])
    with raises("train-images-idx3-ubyte: expected [6, 28, 28]", name, "got [5, 28, 28]"):
        data.load(name, tmp_path)


def test_zipped_files_are_checked_for_their_checksums(arrays: list[np.ndarray], tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "fashion-mnist"
    write(folder, arrays, "{}.gz")
    with raises("expected md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d, of the published file of fashion-mnist"):
        data.load("fashion-mnist", tmp_path)
    for file in mnist.MD5:
        digest = hashlib.md5((folder / f"{file}.gz").read_bytes()).hexdigest()
        monkeypatch.setitem(mnist.GZ_MD5["fashion-mnist"], file, digest)
    assert len(data.load("fashion-mnist", tmp_path).test.x) == 4


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_under_other_names(folder: str, dotted: bool, arrays: list[np.ndarray], tmp_path: Path, monkeypatch) -> None:
    """torchvision's folder, and `train-images.idx3-ubyte`, as some unzip programs call the file."""
    write(tmp_path / folder, arrays)
    for file, array in zip(mnist.MD5, arrays, strict=True):
        monkeypatch.setitem(mnist.MD5, file, hashlib.md5(idx_bytes(array)).hexdigest())
        if dotted:
            (tmp_path / folder / file).rename(tmp_path / folder / file.replace("-idx", ".idx"))
    assert data.load("mnist", tmp_path).train.y.tolist() == arrays[1].tolist()

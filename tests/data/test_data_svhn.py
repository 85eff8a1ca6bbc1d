"""Tests of the reader of SVHN, on small files in the format of train_32x32.mat."""

import sys

import numpy as np
import pytest
import torch
from scipy.io import savemat
from support.data_files import raises

from dgmfast import data
from dgmfast.data import svhn

ROWS = {"train": 7, "test": 3, "extra": 12}


def write(folder, rows=ROWS, **changes):
    """Writes upright images [N, 3, 32, 32] and digits [N] of each part as the public files hold them, and returns them."""
    draw = np.random.default_rng(4)
    folder.mkdir(exist_ok=True)
    parts = {}
    for part, count in rows.items():
        images = draw.integers(0, [[[[60]], [[150]], [[256]]]], (count, 3, 32, 32), np.uint8)
        digits = np.concatenate([np.arange(count - 1), [0]]) % 10
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]  # the files write the digit 0 as 10
        mat = {"X": images.transpose(2, 3, 1, 0), "y": labels}
        savemat(folder / f"{part}_32x32.mat", mat, do_compression=True)
        parts[part] = images, digits
    return parts


def same(split, parts):
    assert split.x.dtype == torch.uint8 and split.x.is_contiguous() and split.y.dtype == torch.int64
    assert torch.equal(split.x.view(-1, 3, 32, 32), torch.from_numpy(np.concatenate([images for images, _ in parts])))
    assert split.y.tolist() == np.concatenate([digits for _, digits in parts]).tolist()


@pytest.mark.parametrize("folder", ["svhn", "."])
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("name", ["svhn", "svhn-train"])
def test_svhn(monkeypatch, tmp_path, folder, extra, name):
    monkeypatch.setattr(svhn, "CHUNK", 5)
    parts = write(tmp_path / folder, ROWS if extra else {"train": 7, "test": 3})
    digits = data.load(name, tmp_path)
    assert (digits.name, digits.image_shape, digits.kind, digits.classes, digits.valid) == (name, (3, 32, 32), "levels", 10, None)
    used = [parts["train"], parts["extra"]] if extra and name == "svhn" else [parts["train"]]
    assert ("with the extra set" in digits.note) == (len(used) == 2)
    same(digits.train, used)
    same(digits.test, [parts["test"]])
    std = np.concatenate([images for images, _ in used]).std((0, 2, 3), dtype=np.float64)
    assert digits.scale.dtype == torch.float32 and digits.scale.shape == (3072,)
    torch.testing.assert_close(digits.scale.view(3, 1024), torch.tensor(std).float()[:, None].expand(3, 1024))

    x = data.sample_inputs(digits, digits.train.x, 0)
    channels = x.double().view(-1, 3, 1024).transpose(0, 1).flatten(1)
    assert (channels.std(1) - 1).abs().max() < 0.01  # the dequantisation noise adds little
    assert (x * digits.scale - digits.train.x - 0.5).abs().max() < 0.5 + 1e-4


@pytest.mark.parametrize("missing", ["train", "test"])
def test_svhn_missing_file(tmp_path, missing):
    write(tmp_path / "svhn", {part: 2 for part in ("train", "test", "extra") if part != missing})
    for name in ("svhn", "svhn-train"):
        with raises(f"load('{name}')", f"expected {missing}_32x32.mat in {tmp_path / 'svhn'}", "found none"):
            data.load(name, tmp_path)


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)
LABELS = np.array([[1], [2], [9], [10]], np.uint8)


@pytest.mark.parametrize(
    ("mat", "parts"),
    [
        ({"X": IMAGES}, ["expected the arrays X, y", "y not found"]),
        ({"y": LABELS}, ["X not found"]),
        ({"X": IMAGES.astype(float), "y": LABELS}, ["X as uint8 [32, 32, 3, N]", "float64 [32, 32, 3, 4]"]),
        ({"X": IMAGES.transpose(3, 0, 1, 2), "y": LABELS}, ["X as uint8", "got uint8 [4, 32, 32, 3]"]),
        ({"X": IMAGES[..., 0], "y": LABELS}, ["X as uint8", "got uint8 [32, 32, 3]"]),
        ({"X": IMAGES, "y": LABELS[:3]}, ["y as numbers [4, 1]", "[3, 1]"]),
        ({"X": IMAGES, "y": LABELS.T}, ["y as numbers [4, 1]", "[1, 4]"]),
        ({"X": IMAGES, "y": np.array([["1"], ["2"], ["3"], ["4"]])}, ["y as numbers [4, 1]"]),
        ({"X": IMAGES, "y": np.array([[1], [0], [9], [10]])}, ["y from 1 to 10", "got 0 in row 1"]),
        ({"X": IMAGES, "y": np.array([[1], [2], [11], [10]])}, ["got 11 in row 2"]),
        ({"X": IMAGES, "y": np.array([[1], [2], [3], [np.nan]])}, ["got nan in row 3"]),
        ({"X": IMAGES, "y": np.array([[1.5], [2], [3], [4]])}, ["got 1.5 in row 0"]),
    ],
)
@pytest.mark.parametrize("part", ["train", "test", "extra"])
def test_svhn_refuses(tmp_path, mat, parts, part):
    write(tmp_path)
    path = tmp_path / f"{part}_32x32.mat"
    savemat(path, mat)
    with raises(path, *parts):
        data.load("svhn", tmp_path)


def test_svhn_damaged_file(tmp_path):
    write(tmp_path)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for raw in (b"", b"<html>not found</html>", whole[:200], whole[: len(whole) // 2], whole[:300] + bytes(200) + whole[500:]):
        path.write_bytes(raw)
        with raises(path, "expected"):
            data.load("svhn", tmp_path)


def test_svhn_without_scipy(monkeypatch, tmp_path):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with raises("load('svhn')", "needs scipy"):
        data.load("svhn", tmp_path)

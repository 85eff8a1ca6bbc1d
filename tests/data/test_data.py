"""Tests of the readers on small files in each public format, and on the real files if they are available (marker `data`)."""

import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import check, idx_bytes, raises, write_mnist

from dgmfast import data
from dgmfast.data import mnist
from dgmfast.errors import InputError

# ---------------------------------------------------------------- idx


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_idx_round_trip(tmp_path_factory, shape, seed, zipped):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    raw = idx_bytes(array)
    path = tmp_path_factory.getbasetemp() / "round-trip"
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    read = data.read_idx(path, hashlib.md5(raw).hexdigest())
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail) | st.binary().map(gzip.compress))
@settings(max_examples=200, deadline=None)
def test_idx_of_any_bytes_is_an_array_or_one_error(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(raw)
    try:
        read = data.read_idx(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "expected" in str(error) and "got" in str(error)
    else:
        assert raw.endswith(read.tobytes())


def test_idx_cut_at_every_byte(tmp_path):
    raw = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    for whole in (raw, gzip.compress(raw)):
        for cut in range(len(whole)):
            path = tmp_path / "cut"
            path.write_bytes(whole[:cut])
            with raises(path, "expected", "got"):
                data.read_idx(path)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["00 00 08", "got an empty file"]),
        (b"<html>", ["00 00 08", "got 3c 68 74 6d"]),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4), ["unsigned bytes", "got 00 00 0d 01"]),
        (b"\0\0\x08\0", ["got 00 00 08 00"]),
        (b"\0\0\x08\xff" + bytes(1020), ["got 00 00 08 ff"]),
        (b"\0\0\x08\x03" + bytes(4), ["expected 16 bytes of idx header", "got 8"]),
        (b"\0\0\x08\x02" + struct.pack(">2I", 0, 2**32 - 1), ["expected positive sizes", "[0, 4294967295]"]),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(2), ["expected 11 bytes for shape [3]", "got 10"]),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(4), ["expected 11 bytes for shape [3]", "got 12"]),
        (b"\x1f\x8bnot gzip after all", ["expected a whole gzip file"]),
        (gzip.compress(idx_bytes(np.zeros(3, np.uint8)), mtime=0) + b"tail", ["expected a whole gzip file"]),
    ],
)
def test_idx_refuses(tmp_path, raw, parts):
    path = tmp_path / "bad"
    path.write_bytes(raw)
    with raises(path, *parts):
        data.read_idx(path)
    assert [file.name for file in tmp_path.iterdir()] == ["bad"]


def test_idx_wrong_md5_missing_and_folder(tmp_path):
    raw = idx_bytes(np.zeros(3, np.uint8))
    path = tmp_path / "x"
    path.write_bytes(raw)
    with raises(path, f"expected md5 {'0' * 32}", f"got {hashlib.md5(raw).hexdigest()}"):
        data.read_idx(path, "0" * 32)
    with raises(tmp_path / "none", "expected a readable file"):
        data.read_idx(tmp_path / "none")
    with raises(tmp_path, "expected a readable file"):
        data.read_idx(tmp_path)


def test_unreadable_file(tmp_path):
    path = tmp_path / "x"
    path.touch(mode=0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with raises(path, "Permission denied"):
        data.read_idx(path)


# ---------------------------------------------------------------- load


def test_names_and_unknown_name():
    mnist = ["mnist", "mnist-444", "mnist-static", "fashion-mnist", "kmnist"]
    files = ["omniglot", "omniglot-burda", "svhn", "svhn-train", "norb", "norb-single"]
    assert data.names() == ["digits", "moons", "potential", *mnist, *files]
    with raises("load: name must be one of digits, moons", "got 'cifar'"):
        data.load("cifar")


def test_digits():
    digits = data.load("digits")
    check(digits.train, 1500, 64, False, 10)
    check(digits.test, 297, 64, False, 10)
    assert (digits.name, digits.image_shape, digits.binary, digits.classes, digits.valid) == (
        "digits",
        (1, 8, 8),
        False,
        10,
        None,
    )
    assert torch.equal(digits.train.x * 16, (digits.train.x * 16).round())
    assert digits.train.y[:10].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]  # the split must never change

    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    together = torch.cat([torch.cat([s.x * 16, s.y[:, None]], 1) for s in (digits.train, digits.test)])
    assert sorted(map(tuple, together.int().tolist())) == sorted(map(tuple, np.c_[rows, labels].astype(int).tolist()))


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with raises("load('digits')", "scikit-learn"):
        data.load("digits")
    (tmp_path / "chardata.mat").touch()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with raises("load('omniglot-burda')", "needs scipy"):
        data.load("omniglot-burda", tmp_path)


def test_without_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DGMFAST_DATA_DIR", raising=False)
    assert data.default_dir() is None
    for name in data.names()[3:]:
        with raises("load('", "--data-dir", "DGMFAST_DATA_DIR"):
            data.load(name)
    with raises("dgmfast.data.download_mnist(dir)"):
        data.load("mnist")
    with raises("existing folder", tmp_path / "none"):
        data.load("omniglot", tmp_path / "none")
    monkeypatch.setenv("DGMFAST_DATA_DIR", str(tmp_path))
    assert data.default_dir() == tmp_path
    with raises("omniglot_28x28_area.npz", tmp_path / "omniglot"):
        data.load("omniglot")
    with raises("train-images-idx3-ubyte.gz or train-images-idx3-ubyte", "download_mnist"):
        data.load("mnist")


@pytest.mark.parametrize("folder", ["mnist", "."])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_small(monkeypatch, tmp_path, folder, zipped):
    draw = np.random.default_rng(0).integers
    arrays = [
        draw(0, 256, (20, 28, 28), np.uint8),
        draw(0, 10, 20, np.uint8),
        draw(0, 256, (5, 28, 28), np.uint8),
        draw(0, 10, 5, np.uint8),
    ]
    write_mnist(tmp_path / folder, arrays, monkeypatch, zipped)
    digits = data.load("mnist", str(tmp_path))
    assert (digits.image_shape, digits.binary, digits.classes, digits.valid, digits.note) == ((1, 28, 28), False, 10, None, "")
    for split, x, y in ((digits.train, *arrays[:2]), (digits.test, *arrays[2:])):
        assert torch.equal(split.x, torch.tensor(x).reshape(-1, 784) / 255)
        assert torch.equal(split.y, torch.tensor(y).long())
    monkeypatch.setitem(mnist.MD5, "t10k-labels-idx1-ubyte", "0" * 32)
    with raises("t10k-labels-idx1-ubyte", "expected md5 0000"):
        data.load("mnist", tmp_path)


@pytest.fixture
def static(monkeypatch) -> dict[str, np.ndarray]:
    """Random bits [rows, 784] per part, with few rows instead of 70000."""
    rows = {"train": 6, "valid": 3, "test": 2}
    monkeypatch.setattr(mnist, "STATIC_ROWS", rows)
    draw = np.random.default_rng(1)
    return {part: draw.integers(0, 2, (count, 784), np.uint8) for part, count in rows.items()}


def write_amat(folder: Path, static: dict[str, np.ndarray]) -> None:
    for part, bits in static.items():
        (folder / f"binarized_mnist_{part}.amat").write_text("".join(" ".join(map(str, row)) + " \n" for row in bits))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["binarized_mnist", "."])
def test_mnist_static_small(tmp_path, static, packed, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    if packed:
        # The array is column-major, as in the real file.
        packed = {part: np.asfortranarray(np.packbits(bits, axis=1)) for part, bits in static.items()}
        np.savez(tmp_path / folder / mnist.STATIC_PACKED, **packed)
    else:
        write_amat(tmp_path / folder, static)
    read = data.load("mnist-static", tmp_path)
    assert (read.binary, read.classes, read.image_shape) == (True, None, (1, 28, 28)) and "fixed binarisation" in read.note
    for part, bits in static.items():
        split = getattr(read, part)
        check(split, len(bits), 784, True, None)
        assert torch.equal(split.x, torch.tensor(bits).float())


def test_mnist_static_refuses(tmp_path, static):
    write_amat(tmp_path, static)
    path = tmp_path / "binarized_mnist_valid.amat"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for text, parts in [
        ("".join(lines[:2]), ["expected 3 rows", "got 2"]),
        (whole + lines[0], ["expected 3 rows", "got 4"]),
        (whole[:-20], ["line 3", "784"]),
        ("2" + whole[1:], ["line 1", "0 or 1"]),
        ("0.0" + whole[1:], ["line 1"]),
        ("10" + whole[1:], ["line 1"]),
    ]:
        path.write_text(text)
        with raises(path, *parts):
            data.load("mnist-static", tmp_path)
    path.unlink()
    with raises(path, "expected a readable file"):
        data.load("mnist-static", tmp_path)

    path = tmp_path / mnist.STATIC_PACKED
    packed = {part: np.packbits(bits, axis=1) for part, bits in static.items()}
    for arrays, parts in [
        ({"train": packed["train"]}, ["valid, test not found"]),
        (packed | {"test": packed["test"][:1]}, ["expected test as uint8 [2, 98]", "got uint8 [1, 98]"]),
        (packed | {"test": static["test"]}, ["got uint8 [2, 784]"]),
    ]:
        np.savez(path, **arrays)
        with raises(path, *parts):
            data.load("mnist-static", tmp_path)
    np.savez(path, **packed)
    path.write_bytes(path.read_bytes()[:-30])
    with raises(path, "expected a whole .npz archive"):
        data.load("mnist-static", tmp_path)


def test_omniglot_small(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 28, 28), np.uint8)
    alphabet = np.array([7, 49, 0], np.uint8)
    path = tmp_path / "omniglot_28x28_area.npz"
    np.savez(path, images=images, alphabet=alphabet)
    read = data.load("omniglot", tmp_path)
    assert (read.classes, read.binary, read.valid, read.image_shape) == (50, False, None, (1, 28, 28))
    assert "area-averaged" in read.note and "not equal" in read.note
    assert torch.equal(read.train.x.view(3, 15, 28, 28), torch.tensor(images[:, :15]) / 255)
    assert torch.equal(read.test.x.view(3, 5, 28, 28), torch.tensor(images[:, 15:]) / 255)
    assert read.train.y.tolist() == [7] * 15 + [49] * 15 + [0] * 15
    assert read.test.y.tolist() == [7] * 5 + [49] * 5 + [0] * 5
    for arrays, parts in [
        ({"images": images[:, :19], "alphabet": alphabet}, ["[characters, 20, 28, 28]", "[3, 19, 28, 28]"]),
        ({"images": images, "alphabet": alphabet[:2]}, ["alphabet [2]"]),
        ({"images": images.astype(float), "alphabet": alphabet}, ["float64"]),
        ({"images": images, "alphabet": np.array([0, 1, 50])}, ["0 to 49", "up to 50"]),
        ({"images": images}, ["alphabet not found"]),
        ({"images": images, "alphabet": np.array([{}, 1, 2], object)}, ["expected a whole .npz archive"]),
    ]:
        np.savez(path, **arrays)
        with raises(path, *parts):
            data.load("omniglot", tmp_path)


def test_omniglot_burda_small(tmp_path):
    """A file in Burda's format must be read with each column as an image in MATLAB's column-major order."""
    from scipy.io import savemat

    draw = np.random.default_rng(3)
    upright = {"data": draw.random((8, 28, 28)), "testdata": draw.random((4, 28, 28))}
    labels = {"target": draw.integers(0, 50, 8), "testtarget": draw.integers(0, 50, 4)}
    mat = {key: np.stack([image.ravel(order="F") for image in images], axis=1) for key, images in upright.items()}
    mat |= {key: np.eye(50)[:, y] for key, y in labels.items()}
    mat |= {"targetchar": np.ones((1, 8)), "testtargetchar": np.ones((1, 4))}
    path = tmp_path / "omniglot" / "chardata.mat"
    path.parent.mkdir()
    savemat(path, mat)
    read = data.load("omniglot-burda", tmp_path)
    assert (read.classes, read.binary, read.valid, read.image_shape) == (50, False, None, (1, 28, 28))
    for split, x, y in ((read.train, "data", "target"), (read.test, "testdata", "testtarget")):
        assert split.x.is_contiguous()
        assert torch.equal(split.x.view(-1, 28, 28), torch.tensor(upright[x]).float())
        assert split.y.tolist() == labels[y].tolist()
        # This is the expression of Burda's own loader.
        burda = mat[x].T.astype("float32").reshape((-1, 28, 28)).reshape((-1, 784), order="F")
        assert torch.equal(split.x, torch.tensor(burda))

    two = mat["target"].copy()
    two[:, 5] = 1
    half = mat["target"] * np.where(np.arange(8) == 2, 0.5, 1)
    nan = mat["data"].copy()
    nan[3, 6] = np.nan
    for change, parts in [
        ({"data": mat["data"][:783]}, ["data as numbers [784, N]", "[783, 8]"]),
        ({"data": mat["data"] * 255}, ["data in [0, 1]", "column 0"]),
        ({"data": nan}, ["data in [0, 1]", "column 6"]),
        ({"target": mat["target"][:, :7]}, ["target as [50, 8]", "[50, 7]"]),
        ({"target": two}, ["single 1", "target", "column 5"]),
        ({"target": half}, ["single 1", "target", "column 2"]),
    ]:
        savemat(path, mat | change)
        with raises(path, *parts):
            data.load("omniglot-burda", tmp_path)
    savemat(path, {"data": mat["data"]})
    with raises(path, "target, testdata, testtarget not found"):
        data.load("omniglot-burda", tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with raises(path, "expected a whole MATLAB file"):
        data.load("omniglot-burda", tmp_path)


# ---------------------------------------------------------------- the real files


@pytest.mark.data
def test_real_mnist(data_dir):
    mnist = data.load("mnist", data_dir)
    check(mnist.train, 60000, 784, False, 10)
    check(mnist.test, 10000, 784, False, 10)
    assert mnist.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.x.mean().item() == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.data
def test_real_mnist_static(data_dir):
    static = data.load("mnist-static", data_dir)
    for split, rows in ((static.train, 50000), (static.valid, 10000), (static.test, 10000)):
        check(split, rows, 784, True, None)
        assert split.x.mean().item() == pytest.approx(0.13, abs=0.005)


@pytest.mark.data
def test_real_omniglot(data_dir):
    omniglot = data.load("omniglot", data_dir)
    check(omniglot.train, 1623 * 15, 784, False, 50)
    check(omniglot.test, 1623 * 5, 784, False, 50)
    assert omniglot.train.x.mean() < 0.2  # ink is 1 and the background 0
    few = data.balanced_subset(omniglot.train.y, 500, 0, 50)
    assert omniglot.train.y[few].bincount().tolist() == [10] * 50  # the labels of CaGeM

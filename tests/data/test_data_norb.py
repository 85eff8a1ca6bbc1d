"""Tests of the reader of small NORB, on small files in the format of its binary matrices."""

import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import raises

from dgmfast import data
from dgmfast.data import norb
from dgmfast.errors import InputError

MAGIC = {"float32": 0x1E3D4C51, "float64": 0x1E3D4C53, "int32": 0x1E3D4C54, "uint8": 0x1E3D4C55, "int16": 0x1E3D4C56}
TRAIN, TEST = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"


def matrix_bytes(array: np.ndarray) -> bytes:
    """Returns a matrix as file content; the header has at least three sizes, and those beyond the number of dimensions are 1."""
    sizes = array.shape + (1,) * (3 - array.ndim)
    little = array.astype(array.dtype.newbyteorder("<"))
    return struct.pack(f"<Ii{len(sizes)}i", MAGIC[array.dtype.name], array.ndim, *sizes) + little.tobytes()


def write(folder, zipped=False):
    """Writes pairs [N, 2, 96, 96] and labels [N] of both splits as the public files hold them, and returns them."""
    draw = np.random.default_rng(6)
    folder.mkdir(exist_ok=True)
    splits = []
    for name, rows in ((TRAIN, 7), (TEST, 5)):
        pairs = draw.integers(0, 256, (rows, 2, 96, 96), np.uint8)
        labels = (np.arange(rows) % 5).astype(np.int32)
        for content, array in (("dat", pairs), ("cat", labels)):
            raw = matrix_bytes(array)
            (folder / f"{name}-{content}.mat{'.gz' if zipped else ''}").write_bytes(gzip.compress(raw, 1) if zipped else raw)
        splits.append((pairs, labels))
    return splits


def block_means(pairs):
    """Maps [N, 2, 96, 96] to the means of 3 × 3 blocks, [N, 2, 32, 32], in float64."""
    return torch.nn.functional.avg_pool2d(torch.from_numpy(pairs).double(), 3)


# ---------------------------------------------------------------- the binary matrix


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sampled_from(sorted(MAGIC)), st.integers(0, 2**32 - 1), st.booleans()
)
@settings(max_examples=50, deadline=None)
def test_matrix_round_trip(tmp_path_factory, shape, dtype, seed, zipped):
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    raw = matrix_bytes(array)
    path = tmp_path_factory.getbasetemp() / "matrix"
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    read = norb.read_matrix(path)
    assert read.dtype.name == dtype
    np.testing.assert_array_equal(read, array)


def test_matrix_bytes_as_published(tmp_path):
    """The reader must accept the published header: the training images begin with 55 4c 3d 1e, 4, 24300, 2, 96, 96."""
    path = tmp_path / "x"
    path.write_bytes(bytes.fromhex("554c3d1e 04000000 01000000 02000000 03000000 01000000") + bytes(range(6)))
    assert norb.read_matrix(path).tolist() == [[[[0], [1], [2]], [[3], [4], [5]]]]
    path.write_bytes(bytes.fromhex("544c3d1e 01000000 02000000 01000000 01000000 04000000 00010000"))
    assert norb.read_matrix(path).tolist() == [4, 256]


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\x55\x4c\x3d\x1e\x01\0\0\0" + tail))
@settings(max_examples=200, deadline=None)
def test_matrix_of_any_bytes_is_an_array_or_one_error(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any-matrix"
    path.write_bytes(raw)
    try:
        read = norb.read_matrix(path)
    except InputError as error:
        assert str(path) in str(error) and "expected" in str(error) and "got" in str(error)
    else:
        assert raw.endswith(read.tobytes())


def test_matrix_cut_at_every_byte(tmp_path):
    raw = matrix_bytes(np.arange(12, dtype=np.int32).reshape(3, 4))
    path = tmp_path / "cut"
    for whole in (raw, gzip.compress(raw)):
        for cut in range(len(whole)):
            path.write_bytes(whole[:cut])
            with raises(path, "expected", "got"):
                norb.read_matrix(path)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["got an empty file"]),
        (b"\x55\x4c\x3d", ["got 55 4c 3d"]),
        (b"MATLAB 5.0 MAT-file", ["expected a binary matrix", "got 4d 41 54 4c 41 42 20 35"]),
        (struct.pack("<5i", 0x1E3D4C52, 1, 1, 1, 1) + bytes(1), ["got 52 4c 3d 1e"]),  # the code of a packed matrix
        (struct.pack(">5i", 0x1E3D4C55, 1, 1, 1, 1) + bytes(1), ["got 1e 3d 4c 55"]),  # big-endian
        (struct.pack("<5i", 0x1E3D4C55, 0, 1, 1, 1), ["got 55 4c 3d 1e 00 00 00 00"]),
        (struct.pack("<5i", 0x1E3D4C55, -1, 1, 1, 1), ["1 to 8 dimensions", "got 55 4c 3d 1e ff ff ff ff"]),
        (struct.pack("<5i", 0x1E3D4C55, 9, 1, 1, 1), ["got 55 4c 3d 1e 09 00 00 00"]),
        (struct.pack("<4i", 0x1E3D4C55, 1, 1, 1), ["expected 20 bytes of header for 1 dimensions", "got 16"]),
        (struct.pack("<5i", 0x1E3D4C55, 4, 1, 1, 1), ["expected 24 bytes of header for 4 dimensions", "got 20"]),
        (struct.pack("<5i", 0x1E3D4C55, 2, 0, 5, 1), ["positive sizes", "got [0, 5]"]),
        (struct.pack("<5i", 0x1E3D4C55, 2, 3, -5, 1), ["positive sizes", "got [3, -5]"]),
        (struct.pack("<5i", 0x1E3D4C54, 1, 3, 1, 1) + bytes(11), ["expected 32 bytes for int32 [3]", "got 31"]),
        (struct.pack("<5i", 0x1E3D4C54, 1, 3, 1, 1) + bytes(13), ["expected 32 bytes for int32 [3]", "got 33"]),
        (struct.pack("<5i", 0x1E3D4C55, 3, *[2**31 - 1] * 3), ["expected", "uint8 [2147483647, 2147483647, 2147483647]"]),
        (b"\x1f\x8bnot gzip after all", ["expected a whole gzip file"]),
    ],
)
def test_matrix_refuses(tmp_path, raw, parts):
    path = tmp_path / "bad"
    path.write_bytes(raw)
    with raises(path, *parts):
        norb.read_matrix(path)


# ---------------------------------------------------------------- load


@pytest.mark.parametrize("folder", ["norb", "."])
@pytest.mark.parametrize("zipped", [True, False])
def test_norb_pairs(monkeypatch, tmp_path, folder, zipped):
    monkeypatch.setattr(norb, "CHUNK", 3)
    splits = write(tmp_path / folder, zipped)
    stereo = data.load("norb", tmp_path)
    assert (stereo.name, stereo.image_shape, stereo.kind, stereo.classes, stereo.valid) == (
        "norb",
        (2, 32, 32),
        "levels",
        5,
        None,
    )
    for split, (pairs, labels) in zip((stereo.train, stereo.test), splits, strict=True):
        assert split.x.dtype == torch.uint8 and split.x.shape == (len(pairs), 2048) and split.x.is_contiguous()
        assert torch.equal(split.x.view(-1, 2, 32, 32).double(), block_means(pairs).round())
        assert split.y.dtype == torch.int64 and split.y.tolist() == labels.tolist()
    x = data.sample_inputs(stereo, stereo.train.x, 0)
    noise = x.double() * 256 - stereo.train.x
    assert x.shape == stereo.train.x.shape and x.min() >= 0 and x.max() <= 1
    assert noise.min() >= 0 and noise.max() <= 1 and abs(noise.mean() - 0.5) < 0.02


def test_norb_single(tmp_path):
    splits = write(tmp_path / "norb")
    single = data.load("norb-single", tmp_path)
    assert (single.name, single.image_shape, single.kind, single.classes) == ("norb-single", (1, 32, 32), "real", 5)
    for split, (pairs, labels) in zip((single.train, single.test), splits, strict=True):
        assert split.x.dtype == torch.float32 and split.x.shape == (len(pairs), 1024) and split.x.is_contiguous()
        torch.testing.assert_close(split.x.view(-1, 32, 32), (block_means(pairs)[:, 0].round() / 255).float())
        assert split.y.tolist() == labels.tolist()
    assert data.sample_inputs(single, single.train.x, 0) is single.train.x


def test_norb_levels_reach_both_ends(tmp_path):
    write(tmp_path)
    pairs = np.zeros((5, 2, 96, 96), np.uint8)
    pairs[1] = 255
    pairs[2, :, ::3, ::3] = 4  # 4/9 is rounded down, 5/9 up
    pairs[3, :, ::3, ::3] = 5
    (tmp_path / f"{TEST}-dat.mat").write_bytes(matrix_bytes(pairs))
    levels = data.load("norb", tmp_path).test.x
    assert [row.unique().tolist() for row in levels] == [[0], [255], [0], [1], [0]]


@pytest.mark.parametrize("missing", [f"{split}-{content}.mat" for split in (TRAIN, TEST) for content in ("dat", "cat")])
def test_norb_missing_file(tmp_path, missing):
    write(tmp_path)
    (tmp_path / missing).unlink()
    for name in ("norb", "norb-single"):
        with raises(f"load('{name}')", f"expected {missing}.gz or {missing} in {tmp_path / 'norb'}", "found none"):
            data.load(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "array", "parts"),
    [
        ("cat", np.arange(1, 6, dtype=np.int32), ["labels 0 to 4 [N]", "int32 [5] from 1 to 5"]),
        ("cat", np.array([0, 1, 2, 3, -1], np.int32), ["from -1 to 3"]),
        ("cat", np.zeros((5, 4), np.int32), ["labels 0 to 4 [N]", "int32 [5, 4]"]),
        ("cat", np.zeros(4, np.int32), ["images as uint8 [4, 2, 96, 96]", "got uint8 [5, 2, 96, 96]", "testing-cat.mat"]),
        ("dat", np.zeros((5, 2, 32, 32), np.uint8), ["images as uint8 [5, 2, 96, 96]", "got uint8 [5, 2, 32, 32]"]),
        ("dat", np.zeros((5, 96, 96), np.uint8), ["got uint8 [5, 96, 96]"]),
        ("dat", np.zeros((5, 2, 96, 96), np.int32), ["got int32 [5, 2, 96, 96]"]),
    ],
)
def test_norb_refuses(tmp_path, content, array, parts):
    write(tmp_path)
    (tmp_path / f"{TEST}-{content}.mat").write_bytes(matrix_bytes(array))
    with raises(f"{tmp_path / TEST}-", *parts):
        data.load("norb", tmp_path)


def test_norb_damaged_file(tmp_path):
    write(tmp_path, zipped=True)
    path = tmp_path / f"{TRAIN}-dat.mat.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with raises(path, "expected a whole gzip file"):
        data.load("norb", tmp_path)

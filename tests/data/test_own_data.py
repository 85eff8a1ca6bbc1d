"""A user's own data: arrays, torch data sets and files become data sets, or one sentence says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgmfast import data
from dgmfast.errors import InputError

TEXT = np.array(["up", "down", "up", "left"] * 25)


def rows(n: int = 100, d: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, (n, d))


def test_rows_are_divided_and_normalised_by_the_training_rows() -> None:
    x = rows()
    found = data.from_arrays(x, TEXT, name="mine")
    assert [len(part.x) for part in (found.train, found.valid, found.test)] == [80, 10, 10]
    assert found.kind == "real" and found.classes == 3 and found.class_names == ("down", "left", "up")
    mean, std = found.normalization
    everything = torch.cat([part.x for part in (found.train, found.valid, found.test)]) * std + mean
    order = everything[:, 0].argsort()
    expected = torch.from_numpy(x)[torch.from_numpy(x)[:, 0].argsort()]
    torch.testing.assert_close(everything[order].double(), expected, rtol=1e-5, atol=1e-5)
    assert found.train.x.mean(0).abs().max() < 1e-5 and (found.train.x.std(0, correction=0) - 1.0).abs().max() < 1e-5
    again = data.from_arrays(x, TEXT)
    assert torch.equal(again.test.x, found.test.x) and torch.equal(again.test.y, found.test.y)
    assert not torch.equal(data.from_arrays(x, TEXT, split_seed=1).test.x, found.test.x)


def test_labels_stay_with_their_rows() -> None:
    x = np.arange(100.0)[:, None] * np.ones((1, 2))
    found = data.from_arrays(x, np.arange(100) % 5, normalize=False)
    for part in (found.train, found.valid, found.test):
        assert torch.equal(part.y, (part.x[:, 0] % 5).long())


@pytest.mark.parametrize(
    ("x", "kind", "shape"),
    [
        (np.zeros((20, 4)), "binary", None),
        (rows(20), "real", None),
        (np.full((20, 2, 2), 0.5), "grey", (1, 2, 2)),
        (np.full((20, 2, 2), 200, dtype=np.uint8), "grey", (1, 2, 2)),
        (np.full((20, 3, 2, 2), 200, dtype=np.uint8), "levels", (3, 2, 2)),
        (np.full((20, 4), 7, dtype=np.uint8), "levels", None),
        (torch.rand(20, 4), "real", None),
    ],
)
def test_the_kind_follows_from_the_values(x: Any, kind: str, shape: tuple[int, int, int] | None) -> None:
    found = data.from_arrays(x)
    assert (found.kind, found.image_shape) == (kind, shape)
    inputs = data.sample_inputs(found, found.train.x, 0)
    assert inputs.dtype == torch.float32 and inputs.isfinite().all()
    assert kind == "real" or (inputs.min() >= 0.0 and inputs.max() <= 1.0)


def test_a_constant_column_is_kept() -> None:
    x = rows()
    x[:, 1] = 4.0
    assert data.from_arrays(x).train.x[:, 1].abs().max() == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones(5)}, r"x must be real numbers of shape \[N, D\]"),
        ({"x": [["a"]]}, "x must be a tensor or an array of numbers"),
        ({"x": rows(), "y": np.ones(3)}, r"y must be labels of shape \[100\]"),
        ({"x": rows(), "y": np.full(100, 0.5)}, "y must be whole numbers or text; got 0.5 in row 0"),
        ({"x": rows(), "y": np.zeros(100)}, "y must have at least two classes; got 1"),
        ({"x": rows(), "split": (0.5, 0.5)}, "split must be three fractions"),
        ({"x": rows(), "split": (0.9, 0.1, 0.0)}, "split must leave training and test rows"),
        ({"x": rows(4), "split": (0.8, 0.1, 0.1)}, "expected enough rows for the split"),
        ({"x": rows(), "kind": "complex"}, "kind must be one of grey, binary, levels, real"),
        ({"x": rows(), "kind": "levels"}, "x must hold whole levels 0 … 255"),
        ({"x": rows(), "kind": "grey"}, r"x must lie in \[0, 1\] for kind grey"),
        ({"x": np.zeros((20, 4)), "normalize": True}, "normalize is for rows of kind real; got binary"),
        ({"x": np.where(np.arange(300).reshape(100, 3) == 7, np.nan, 1.5)}, "x must be finite; got nan in row"),
        ({"x": rows(), "image_shape": (1, 2, 2)}, r"image_shape must be \(C, H, W\) of 3 numbers"),
        ({"x": np.zeros((20, 2, 2)), "image_shape": (1, 4, 1)}, r"image_shape must be \[1, 2, 2\]"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.from_arrays(**arguments)


def test_a_torch_data_set_and_its_loader() -> None:
    items = [(torch.full((1, 2, 2), i / 40.0), i % 4) for i in range(40)]
    for given in (items, torch.utils.data.DataLoader(items, batch_size=7)):
        found = data.from_torch(given)
        assert found.classes == 4 and found.kind == "grey" and found.image_shape == (1, 2, 2)
        assert torch.equal(found.train.y, (found.train.x[:, 0] * 40).round().long() % 4)
    assert data.from_torch([torch.rand(3) for _ in range(20)]).classes is None
    with pytest.raises(InputError, match="must have items of one shape"):
        data.from_torch([torch.rand(3), torch.rand(4)])
    with pytest.raises(InputError, match="must be a torch Dataset with a length"):
        data.from_torch(iter([torch.rand(3)]))


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    x, names = rows(), ["a", "b c", "d"]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=TEXT)
    lines = [",".join([*names, "state"]), *(",".join([*map(repr, map(float, row)), y]) for row, y in zip(x, TEXT, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    reference = data.from_arrays(x, TEXT)
    for found in (data.from_file(tmp_path / "xy.npz"), data.from_file(tmp_path / "t.csv", label_column="state")):
        assert torch.equal(found.train.x, reference.train.x) and torch.equal(found.test.y, reference.test.y)
    assert torch.equal(data.load(str(tmp_path / "x.npy")).train.x, reference.train.x)
    np.savez(tmp_path / "parts.npz", x_train=x[:60], y_train=TEXT[:60], x_test=x[60:], y_test=TEXT[60:])
    parts = data.from_file(tmp_path / "parts.npz", normalize=False)
    assert parts.valid is None and torch.equal(parts.test.x, torch.from_numpy(x[60:]).float())


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "a,b\n1,2\n3,x\n", {}, "expected a number in row 2, column 'b'; got 'x'; name the column of labels"),
        ("t.csv", "a,b\n1,2\n3,\n", {"label_column": "a"}, "expected a number in row 2, column 'b'; got nothing"),
        ("t.csv", "a,b\n1,2,3\n", {}, "expected 2 values in row 1; got 3"),
        ("t.csv", "a,a\n1,2\n", {}, "expected columns of different names; got 'a' twice"),
        ("t.csv", "a,b\n", {}, "expected a header and at least one row"),
        ("t.csv", "a,b\n1,2\n", {"label_column": "c"}, "label_column must be one of a, b; got 'c'"),
        ("t.csv", b"a,b\n\xff\xfe,2\n", {}, "expected UTF-8 text"),
        ("t.npy", "nonsense", {}, "expected an .npy array of numbers"),
        ("t.npz", "nonsense", {}, "expected a whole .npz archive"),
        ("t.txt", "1 2", {}, "expected a folder of images, or a file that ends in"),
        ("t.npy", "nonsense", {"label_column": "y"}, "label_column is for .csv and .parquet files"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, name: str, content: Any, options: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        data.from_file(tmp_path / name, **options)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"expected an \.npy array of numbers"):
        data.from_file(tmp_path / "x.npy")


def test_images_in_folders(tmp_path: Path) -> None:
    for label, level in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        for i in range(20):
            Image.fromarray(np.full((4, 5), level + i, dtype=np.uint8)).save(tmp_path / label / f"{i}.png")
    found = data.load(str(tmp_path))
    assert found.kind == "grey" and found.image_shape == (1, 4, 5) and found.class_names == ("cat", "dog")
    assert torch.equal(found.train.y, (found.train.x[:, 0] > 0.5).long())
    Image.new("RGB", (5, 4)).save(tmp_path / "cat" / "colour.png")
    assert data.load(str(tmp_path)).kind == "levels"
    Image.new("RGB", (6, 4)).save(tmp_path / "cat" / "wide.png")
    with pytest.raises(InputError, match="expected an image of 5 x 4 pixels"):
        data.load(str(tmp_path))


def test_a_saved_data_set_comes_back(tmp_path: Path) -> None:
    for dataset in (data.from_arrays(rows(), TEXT), data.load("digits"), data.from_arrays(np.full((20, 3, 2, 2), 9, np.uint8))):
        data.save(dataset, tmp_path / "data.npz")
        found = data.load_saved(tmp_path / "data.npz")
        for field in ("name", "kind", "classes", "note", "image_shape", "class_names"):
            assert getattr(found, field) == getattr(dataset, field)
        assert torch.equal(found.train.x, dataset.train.x) and (found.valid is None) == (dataset.valid is None)
        assert (found.scale is None) == (dataset.scale is None) and (found.normalization is None) == (
            dataset.normalization is None
        )


def test_rows_of_another_file_are_prepared_alike(tmp_path: Path) -> None:
    dataset = data.from_arrays(rows(), TEXT)
    np.savez(tmp_path / "other.npz", x=rows()[:5], y=TEXT[:5])
    found = data.rows_like(dataset, tmp_path / "other.npz")
    mean, std = dataset.normalization
    torch.testing.assert_close(found.x * std + mean, torch.from_numpy(rows()[:5]).float())
    assert [dataset.class_names[i] for i in found.y] == TEXT[:5].tolist()
    np.savez(tmp_path / "new.npz", x=rows()[:5], y=["up", "down", "odd", "up", "up"])
    with pytest.raises(InputError, match="expected labels among down, left, up; got 'odd'"):
        data.rows_like(dataset, tmp_path / "new.npz")
    np.save(tmp_path / "wide.npy", rows(5, 4))
    with pytest.raises(InputError, match="expected rows of 3 numbers, as in own; got 4"):
        data.rows_like(dataset, tmp_path / "wide.npy")


def test_a_folder_does_not_hide_a_known_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not data.is_path("digits") and data.is_path("mine") and data.is_path("x.npy") and not data.is_path("cifar")
    assert len(data.load("digits").train.x) == 1500


def test_every_data_set_says_where_it_comes_from() -> None:
    for name in data.names():
        assert all(data.describe(name))

"""Tests of the toy data sets, which need no files, and of MNIST without its dead pixels."""

import math
import sys

import numpy as np
import pytest
import torch
from support.data_files import raises, write_mnist

from dgmfast import data
from dgmfast.data import mnist


def test_moons():
    moons = data.load("moons")
    assert (moons.image_shape, moons.kind, moons.binary, moons.classes, moons.valid) == (None, "real", False, 2, None)
    for split in (moons.train, moons.test):
        assert split.x.shape == (10_000, 2) and split.x.dtype == torch.float32 and split.x.is_contiguous()
        assert split.y.dtype == torch.int64 and split.y.bincount().tolist() == [5000, 5000]
        # The distance from the half circle of a row's own class is the noise in the radial direction.
        x, upper = split.x.double(), split.y == 0
        radius = torch.where(upper, x.norm(dim=1), (x - torch.tensor([1.0, 0.5])).norm(dim=1))
        assert abs(radius.mean().item() - 1) < 0.01
        assert radius.std().item() == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(moons.train.x, moons.test.x)
    again = data.load("moons")
    assert torch.equal(moons.train.x, again.train.x) and torch.equal(moons.test.y, again.test.y)
    assert len(data.balanced_subset(moons.train.y, 6, 0, 2)) == 6
    chosen = data.labelled_rows(moons, 6, seed=3)
    assert torch.equal(chosen, chosen.unique()) and moons.train.y[chosen].bincount().tolist() == [3, 3]
    points = torch.tensor([[-0.9, 0.1], [0, 1], [1.1, 0.1], [0, 0.4], [1.1, -0.5], [1.9, 0.4]])
    assert (torch.cdist(moons.train.x[chosen], points).min(0).values < 0.05).all()
    assert torch.equal(data.labelled_rows(moons, 8, seed=3), data.balanced_subset(moons.train.y, 8, 3, 2))
    assert data.sample_inputs(moons, moons.train.x, 1) is moons.train.x


def test_moons_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with raises("load('moons')", "scikit-learn"):
        data.load("moons")


def test_potential():
    potential = data.load("potential")
    assert (potential.image_shape, potential.kind, potential.classes, potential.valid) == (None, "real", None, None)
    for split, rows in ((potential.train, 10_000), (potential.test, 1_000)):
        assert split.x.shape == (rows, 1) and split.x.dtype == torch.float32 and split.y is None
        assert not split.x.any()


# ---------------------------------------------------------------- mnist-444


def test_mnist_444_small(monkeypatch, tmp_path):
    draw = np.random.default_rng(0).integers
    images = draw(0, 256, (20, 28, 28), np.uint8)
    images[:, :5] = 40  # dead pixels
    images[:, 27, 3] = 100 + np.tile([0, 51], 10)  # std 0.1026 with N − 1
    images[:, 27, 4] = 100 + np.tile([0, 48], 10)  # std 0.0966
    arrays = [images, draw(0, 10, 20, np.uint8), draw(0, 256, (5, 28, 28), np.uint8), draw(0, 10, 5, np.uint8)]
    write_mnist(tmp_path / "mnist", arrays, monkeypatch)
    with raises("load('mnist-444')", "expected 444 pixels", "got 643"):
        data.load("mnist-444", tmp_path)
    monkeypatch.setattr(mnist, "KEPT", 643)
    reduced = data.load("mnist-444", tmp_path)
    assert (reduced.image_shape, reduced.full_shape, reduced.kind, reduced.classes) == (None, (1, 28, 28), "grey", 10)
    kept = [pixel for pixel in range(5 * 28, 784) if pixel != 27 * 28 + 4]
    assert reduced.pixels.dtype == torch.int64 and reduced.pixels.tolist() == kept
    for split, x, y in ((reduced.train, *arrays[:2]), (reduced.test, *arrays[2:])):
        assert split.x.is_contiguous() and split.y.tolist() == y.tolist()
        full = torch.tensor(x).view(-1, 1, 28, 28) / 255
        dropped = torch.ones(784).index_fill(0, reduced.pixels, 0).view(1, 1, 28, 28)
        assert torch.equal(data.full_images(reduced.pixels, reduced.full_shape, split.x), full * (1 - dropped))


@pytest.mark.data
def test_real_mnist_444(data_dir):
    mnist, reduced = data.load("mnist", data_dir), data.load("mnist-444", data_dir)
    assert reduced.train.x.shape == (60000, 444) and reduced.test.x.shape == (10000, 444)
    assert torch.equal(reduced.train.y, mnist.train.y) and torch.equal(reduced.test.y, mnist.test.y)
    std = mnist.train.x.double().std(0)
    assert (std[reduced.pixels] >= 0.1).all() and (std >= 0.1).sum() == 444
    assert (std - 0.1).abs().min() > 5e-4  # the choice of float32, or of N or N − 1, changes no pixel's side of 0.1
    again = data.full_images(reduced.pixels, reduced.full_shape, reduced.test.x)
    assert torch.equal(again.flatten(1)[:, reduced.pixels], mnist.test.x[:, reduced.pixels])
    assert again.sum() > 0.9 * mnist.test.x.sum()


# ---------------------------------------------------------------- full_images


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_full_images(batch, dtype):
    pixels = torch.tensor([1, 4, 5])
    x = torch.arange(1, 3 * math.prod(batch) + 1).view(*batch, 3).to(dtype)
    full = data.full_images(pixels, (1, 2, 3), x)
    assert full.shape == (*batch, 1, 2, 3) and full.dtype == dtype
    assert torch.equal(full.view(*batch, 6)[..., pixels], x)
    assert not full.view(*batch, 6)[..., [0, 2, 3]].any()
    whole = torch.ones(*batch, 6)
    assert data.full_images(None, (1, 2, 3), whole).shape == (*batch, 1, 2, 3)


@pytest.mark.parametrize(
    ("pixels", "x", "parts"),
    [
        (torch.tensor([0, 1]), torch.zeros(2, 3), ["rows [..., 2]", "got [2, 3]"]),
        (None, torch.zeros(2, 3), ["rows [..., 6]", "got [2, 3]"]),
        (None, torch.zeros(()), ["rows [..., 6]", "got []"]),
        (torch.tensor([0, 6]), torch.zeros(2, 2), ["0..5", "[1, 2, 3]", "got 0..6"]),
        (torch.tensor([-1, 5]), torch.zeros(2, 2), ["0..5", "got -1..5"]),
    ],
)
def test_full_images_refuses(pixels, x, parts):
    with raises("full_images", *parts):
        data.full_images(pixels, (1, 2, 3), x)

"""Tests of seeded draws: binarisation, dequantisation and labelled subsets."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import raises

from dgmfast import data

# ---------------------------------------------------------------- binarize


def test_binarize_is_a_function_of_values_and_seed():
    x = torch.rand(37, 11, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0, 1
    first = data.binarize(x, 5)
    assert first.dtype == torch.float32 and ((first == 0) | (first == 1)).all()
    assert (first[0] == 0).all() and (first[1] == 1).all()
    torch.manual_seed(99)
    assert torch.equal(first, data.binarize(x, 5))
    assert torch.equal(first, data.binarize(x.t().contiguous().t(), 5))  # other strides
    assert torch.equal(first, data.binarize(x.double(), 5))
    assert torch.equal(first, data.binarize(x.clone().requires_grad_(), 5))
    assert not torch.equal(first, data.binarize(x, 6))
    assert torch.equal(data.binarize(torch.eye(3, dtype=torch.uint8), 0), torch.eye(3))
    assert data.binarize(torch.empty(0, 784), 0).shape == (0, 784)


def test_binarize_leaves_global_state_and_input_alone():
    x = torch.full((100,), 0.5)
    before = torch.random.get_rng_state()
    data.binarize(x, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (x == 0.5).all()


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.99])
def test_binarize_has_the_right_mean(p):
    n = 200_000
    mean = data.binarize(torch.full((n,), p), 7).double().mean().item()
    assert abs(mean - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("bad", [-0.001, 1.001, math.nan, math.inf, -math.inf])
def test_binarize_refuses(bad):
    x = torch.zeros(5, 4)
    x[3, 2] = bad
    with raises("binarize: x must lie in [0, 1]", "row 3"):
        data.binarize(x, 0)


@pytest.mark.parametrize("seed", [2**64, "1", None, 0.5])
def test_seed_refused(seed):
    with raises("binarize: seed must be an integer", repr(seed)):
        data.binarize(torch.zeros(2), seed)
    with raises("sample_inputs: seed must be an integer", repr(seed)):
        levels = torch.zeros(2, 1, dtype=torch.uint8)
        data.sample_inputs(dataset("levels", levels), levels, seed)
    with raises("balanced_subset: seed must be an integer", repr(seed)):
        data.balanced_subset(torch.arange(2), 2, seed, 2)


# ---------------------------------------------------------------- sample_inputs


def dataset(kind: str, x: torch.Tensor, scale: torch.Tensor | None = None) -> data.Dataset:
    split = data.Split(x, None)
    return data.Dataset("rows", split, None, split, image_shape=None, kind=kind, classes=None, note="", scale=scale)


def test_redraw_of_grey_binary_and_real_rows():
    x = torch.rand(7, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(data.sample_inputs(dataset("grey", x), x[2:4], 3), data.binarize(x[2:4], 3))
    whole = x.round()
    for kind in ("binary", "real"):
        assert data.sample_inputs(dataset(kind, whole), whole, 3) is whole
    assert [dataset(kind, whole).binary for kind in ("grey", "binary", "levels", "real")] == [False, True, False, False]


def test_redraw_of_levels_is_a_function_of_values_and_seed():
    levels = torch.arange(256, dtype=torch.uint8).view(64, 4)
    scale = torch.tensor([1.0, 2.0, 50.0, 256.0])
    rows = dataset("levels", levels, scale)
    before = torch.random.get_rng_state()
    first = data.sample_inputs(rows, levels, 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.dtype == torch.float32 and first.shape == (64, 4) and first.is_contiguous()
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8).view(64, 4))
    noise = first.double() * scale - levels
    assert (noise > -1e-4).all() and (noise < 1 + 1e-4).all() and noise.std() > 0.2
    assert torch.equal(first, data.sample_inputs(rows, levels, 5))
    assert torch.equal(first, data.sample_inputs(rows, levels.t().contiguous().t(), 5))  # other strides
    assert torch.equal(first, data.sample_inputs(rows, levels.double().requires_grad_(), 5))
    assert not torch.equal(first, data.sample_inputs(rows, levels, 6))
    # A data set without a scale has the scale 1.
    assert torch.allclose(first * scale, data.sample_inputs(dataset("levels", levels), levels, 5))
    assert data.sample_inputs(rows, levels[:0], 5).shape == (0, 4)


def test_redraw_adds_uniform_noise():
    levels = torch.full((100_000, 1), 3, dtype=torch.uint8)
    noise = data.sample_inputs(dataset("levels", levels), levels, 0).double() - 3
    assert noise.min() >= 0 and noise.max() <= 1
    assert abs(noise.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / 1e5)
    assert abs(noise.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / 1e5)  # 1/80 − 1/144, the variance of (u − ½)²


@pytest.mark.parametrize("bad", [-1.0, 256.0, 0.5, math.nan, math.inf])
def test_redraw_refuses_what_is_no_level(bad):
    x = torch.zeros(3, 2)
    x[1, 1] = bad
    with raises("sample_inputs: x must hold the levels 0 to 255 of rows"):
        data.sample_inputs(dataset("levels", x), x, 0)


def test_redraw_and_dataset_refuse():
    x = torch.zeros(3, 2, dtype=torch.uint8)
    with raises("sample_inputs: x must be rows [N, 2] of rows", "got [3, 1]"):
        data.sample_inputs(dataset("levels", x), x[:, :1], 0)
    with raises("sample_inputs: x must be rows [N, 2]", "got [2]"):
        data.sample_inputs(dataset("levels", x), x[0], 0)
    with raises("Dataset: kind must be one of grey, binary, levels, real", "got 'gray'"):
        replace(dataset("grey", x), kind="gray")


# ---------------------------------------------------------------- balanced_subset


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_balanced_subset_is_even_seeded_and_nested(classes, each, seed):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat(each + 3)[torch.randperm(classes * (each + 3), generator=draw)]
    chosen = data.balanced_subset(y, each * classes, seed, classes)
    assert chosen.dtype == torch.int64 and (chosen.diff() > 0).all()
    assert y[chosen].bincount(minlength=classes).tolist() == [each] * classes
    assert torch.equal(chosen, data.balanced_subset(y, each * classes, seed, classes))
    assert set(chosen.tolist()) <= set(data.balanced_subset(y, (each + 1) * classes, seed, classes).tolist())


def test_balanced_subset_depends_on_the_seed():
    y = torch.arange(10).repeat(100)
    assert not torch.equal(data.balanced_subset(y, 100, 0, 10), data.balanced_subset(y, 100, 1, 10))


@pytest.mark.parametrize(
    ("y", "n", "classes", "parts"),
    [
        (torch.arange(10), 15, 10, ["multiple of classes, 10", "got 15"]),
        (torch.arange(10), 0, 10, ["positive multiple", "got 0"]),
        (torch.arange(10), 20, 10, ["at most the number of rows, 10", "got 20"]),
        (torch.empty(0, dtype=torch.int64), 2, 2, ["at most the number of rows, 0"]),
        (torch.tensor([0, 0, 0, 1]), 4, 2, ["at least 2 rows of class 1 for n = 4", "got 1"]),
        (torch.tensor([0, 2, 2]), 3, 3, ["each class 0..2", "got none of class 1"]),
        (torch.tensor([0, 1, 2]), 2, 2, ["0..1", "got 2"]),
        (torch.tensor([0, -1]), 2, 2, ["0..1", "got -1"]),
        (torch.tensor([0.0, 1.0]), 2, 2, ["integer labels", "float32"]),
        (torch.zeros(2, 2, dtype=torch.int64), 2, 2, ["integer labels [N]", "[2, 2]"]),
    ],
)
def test_balanced_subset_refuses(y, n, classes, parts):
    with raises("balanced_subset", *parts):
        data.balanced_subset(y, n, 0, classes)

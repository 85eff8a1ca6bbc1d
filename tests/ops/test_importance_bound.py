"""Tests of importance_bound against exact values and the properties of a log-mean."""

from __future__ import annotations

import math

import pytest
import torch
from support.op_cases import skip_reference_in_16_bits

from dgmfast import ops, reference

INFINITY = math.inf
implementations = pytest.mark.parametrize("bound", [ops.importance_bound, reference.importance_bound], ids=["op", "reference"])


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).to(device, dtype)


@implementations
def test_is_the_log_of_the_mean(bound, device: str) -> None:
    log_w = draw(4, 100, device=device)
    torch.testing.assert_close(bound(log_w), log_w.exp().mean(-1).log())
    torch.testing.assert_close(bound(log_w, 0), log_w.exp().mean(0).log())
    assert torch.equal(bound(log_w, -1), bound(log_w, 1))
    assert torch.equal(bound(log_w, -2), bound(log_w, dim=0))


@implementations
def test_one_sample_is_itself(bound, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    log_w = torch.tensor([[-90.0], [0.0], [1e4], [-1e4], [-INFINITY], [INFINITY]], device=device, dtype=dtype)
    assert torch.equal(bound(log_w), log_w[:, 0])
    log_w = torch.tensor([-90.0, 0.0, 1e4], device=device, dtype=dtype, requires_grad=True)
    assert torch.equal(torch.autograd.grad(bound(log_w.unsqueeze(1)).sum(), log_w)[0], torch.ones_like(log_w))


def test_a_shift_passes_through(path_dtype: tuple[str, torch.dtype]) -> None:
    """Adding a constant to log w must add it to the bound, also where the exponentials overflow or vanish."""
    device, dtype = path_dtype
    log_w = (draw(3, 50, device=device) * 4).round() / 4  # sums with 2^13 are exact in float32
    if dtype in (torch.bfloat16, torch.float16):
        pytest.skip("a shift is not exact in 16 bits")
    log_w = log_w.to(dtype)
    for shift in (-(2.0**13), 2.0**13):
        expected = ops.importance_bound(log_w).double() + shift
        torch.testing.assert_close(ops.importance_bound(log_w + shift).double(), expected, rtol=torch.finfo(dtype).eps, atol=0.0)


@implementations
def test_lies_between_the_mean_and_the_maximum(bound, device: str) -> None:
    log_w = draw(200, 7, device=device, dtype=torch.float32)
    value = bound(log_w)
    assert bool((value <= log_w.amax(-1)).all())
    assert bool((value >= log_w.mean(-1) - 1e-5).all())


@implementations
def test_no_weight_and_infinite_weight(bound, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    rows = {
        (-INFINITY, -INFINITY, -INFINITY): -INFINITY,
        (-INFINITY, -2.0, -INFINITY): -2.0 - math.log(3.0),
        (-INFINITY, INFINITY, 0.0): INFINITY,
        (INFINITY, INFINITY, INFINITY): INFINITY,
        (0.0, math.nan, 0.0): math.nan,
        (math.nan, INFINITY, 0.0): math.nan,
        (-INFINITY, math.nan, -INFINITY): math.nan,
    }
    log_w = torch.tensor(list(rows), device=device, dtype=dtype)
    expected = torch.tensor(list(rows.values()), device=device, dtype=dtype)
    for repeats in (1, 30):  # the tail of a vector, and whole vectors
        torch.testing.assert_close(bound(log_w.repeat(1, repeats)), expected, equal_nan=True)


def test_gradient_is_the_normalised_weights(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    log_w = draw(6, 300, device=device).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.importance_bound(log_w).sum(), log_w)
    expected = torch.softmax(log_w.detach().double(), -1)
    size = float(torch.logsumexp(log_w.detach().double(), -1).abs().max()) + math.log(300) + 4
    finfo = torch.finfo(dtype)
    assert bool(((gradient.double() - expected).abs() <= size * finfo.eps * expected + finfo.smallest_normal).all())


@implementations
def test_gradient_of_infinitely_small_weights(bound, path_dtype: tuple[str, torch.dtype]) -> None:
    """A weight of 0 among others must have gradient 0, not NaN."""
    device, dtype = path_dtype
    skip_reference_in_16_bits(bound, dtype)
    log_w = torch.tensor([[-INFINITY, 0.0, 0.0], [-1e4, -1e4, -INFINITY]], device=device, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(bound(log_w).sum(), log_w)
    expected = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]], device=device, dtype=dtype)
    size = 1e4 if dtype in (torch.float32, torch.float64) else 200.0  # e^(a − b) with a and b of size 1e4, rounded once or twice
    torch.testing.assert_close(gradient, expected, rtol=2 * size * torch.finfo(dtype).eps, atol=0.0)


@implementations
@pytest.mark.parametrize("samples", [1, 4, 100])
def test_gradient_where_all_weights_are_zero(bound, samples: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """The gradient of a row whose weights are all 0 must be 0, whether or not the loss contains it, and spoil no other row."""
    device, dtype = path_dtype
    skip_reference_in_16_bits(bound, dtype)
    log_w = draw(3, samples, device=device, dtype=dtype)
    log_w[1] = -INFINITY
    for keep in ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]):
        leaf = log_w.clone().requires_grad_()
        value = bound(leaf)
        assert value[1] == -INFINITY and bool(value[[0, 2]].isfinite().all())
        value.backward(torch.tensor(keep, device=device, dtype=dtype))
        assert torch.equal(leaf.grad[1], torch.zeros_like(leaf.grad[1]))
        torch.testing.assert_close(leaf.grad[[0, 2]], torch.softmax(log_w[[0, 2]], -1))


def test_infinite_weights_share_the_gradient(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    log_w = torch.tensor([[INFINITY, 0.0, INFINITY, -INFINITY]], device=device, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.importance_bound(log_w).sum(), log_w)
    assert gradient.tolist() == [[0.5, 0.0, 0.5, 0.0]]


@pytest.mark.parametrize("level", [0.0, -90.0, -2500.0, 2500.0, -1e5])
def test_the_gradient_keeps_its_digits_at_any_size(level: float, path_device: str) -> None:
    """The gradient must keep its precision although the bound is rounded to its own size, which is 1.2e-4 at −2500."""
    log_w = (draw(5, 300, device=path_device) + level).float().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.importance_bound(log_w).sum(), log_w)
    expected = torch.softmax(log_w.detach().double(), -1)
    # The difference from the largest log w, below 30, has one rounding; exp, the sum of 300 weights and the quotient have a few.
    assert bool(((gradient.double() - expected).abs() <= 50 * torch.finfo(torch.float32).eps * expected).all())


def test_a_million_samples(device: str) -> None:
    """The rounding error must not grow with the number of samples."""
    log_w = draw(1, 1_000_001, device=device, dtype=torch.float32)
    truth = reference.importance_bound(log_w.double())
    assert abs(float(ops.importance_bound(log_w).double() - truth)) < 1e-6 * max(1.0, abs(float(truth)))


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5), (2, 1, 3, 4)])
def test_every_dim(shape: tuple[int, ...], device: str) -> None:
    log_w = draw(*shape, device=device).requires_grad_()
    for dim in range(-len(shape), len(shape)):
        out, expected = ops.importance_bound(log_w, dim), reference.importance_bound(log_w, dim)
        torch.testing.assert_close(out, expected)
        weights = torch.arange(1.0, out.numel() + 1, device=device).double().view(out.shape)
        gradients = [torch.autograd.grad((value * weights).sum(), log_w)[0] for value in (out, expected)]
        torch.testing.assert_close(*gradients)

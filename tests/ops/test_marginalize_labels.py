"""Tests of marginalize_labels against torch.distributions, exact values and the bound that it computes."""

from __future__ import annotations

import math

import pytest
import torch
from support.op_cases import skip_reference_in_16_bits

from dgmfast import ops, reference

INFINITY = math.inf
implementations = pytest.mark.parametrize(
    "marginalize", [ops.marginalize_labels, reference.marginalize_labels], ids=["op", "reference"]
)


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    logits, values = (3.0 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits.to(device, dtype), (values - 100.0).to(device, dtype)


@implementations
def test_agrees_with_torch(marginalize, device: str) -> None:
    logits, values = draw(4, 10, device=device)
    q = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(marginalize(logits, values), (q.probs * values).sum(-1) + q.entropy())


@implementations
def test_one_label_is_its_value(marginalize, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    values = torch.tensor([[-90.0], [0.0], [1e4], [-INFINITY]], device=device, dtype=dtype)
    for logit in (0.0, 1e4, -1e4):
        assert torch.equal(marginalize(torch.full_like(values, logit), values), values[:, 0])


@implementations
def test_equal_values_add_the_entropy(marginalize, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    for labels in (2, 10, 33):
        out = marginalize(
            torch.zeros(3, labels, device=device, dtype=dtype), torch.full((labels,), -2.0, device=device, dtype=dtype)
        )
        torch.testing.assert_close(out, torch.full_like(out, math.log(labels) - 2.0))


@implementations
def test_best_at_the_posterior(marginalize, device: str) -> None:
    """Over all q the largest value must be log Σ_y e^{values_y}, at q ∝ e^values, where the gradient of the logits is 0."""
    logits, values = draw(50, 10, device=device)
    assert bool((marginalize(logits, values) <= torch.logsumexp(values, -1)).all())
    best = values.clone().requires_grad_()
    out = marginalize(best, values)
    torch.testing.assert_close(out, torch.logsumexp(values, -1))
    (gradient,) = torch.autograd.grad(out.sum(), best)
    assert float(gradient.abs().max()) < 1e-12


def test_a_shift_of_the_values_keeps_the_gradients(path_dtype: tuple[str, torch.dtype]) -> None:
    """For bounds near −1000 nats that differ by a few nats, the gradient must keep every digit of the differences."""
    device, dtype = path_dtype
    if dtype in (torch.bfloat16, torch.float16):
        pytest.skip("a shift is not exact in 16 bits")
    logits, values = (t.to(dtype) for t in draw(20, 10, device=device))
    near = (values * 64).round() / 64  # sums with 1024 are exact in float32
    gradients = []
    for shift in (0.0, -1024.0):
        leaves = [logits.clone().requires_grad_(), (near + shift).requires_grad_()]
        gradients.append(torch.autograd.grad(ops.marginalize_labels(*leaves).sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradients(device: str) -> None:
    logits, values = (t.requires_grad_() for t in draw(5, 10, device=device))
    out = ops.marginalize_labels(logits, values)
    d_logits, d_values = torch.autograd.grad(out.sum(), (logits, values))
    log_q = torch.log_softmax(logits.detach(), -1)
    torch.testing.assert_close(d_values, log_q.exp())
    torch.testing.assert_close(d_logits, log_q.exp() * (values.detach() - log_q - out.detach()[:, None]))
    torch.testing.assert_close(d_logits.sum(-1), torch.zeros_like(out), rtol=0.0, atol=1e-12)


@implementations
@pytest.mark.parametrize("low", [-1e4, -INFINITY])
def test_impossible_labels(marginalize, low: float, path_dtype: tuple[str, torch.dtype]) -> None:
    """A label of probability 0 must add 0, and its gradients must be 0, not NaN."""
    device, dtype = path_dtype
    skip_reference_in_16_bits(marginalize, dtype)
    for repeats in (1, 20):  # the tail of a vector, and whole vectors
        logits = torch.tensor([0.0, low, 0.0], device=device, dtype=dtype).repeat(repeats).requires_grad_()
        values = torch.tensor([-3.0, 1e4, -5.0], device=device, dtype=dtype).repeat(repeats).requires_grad_()
        out = marginalize(logits, values)
        torch.testing.assert_close(out, torch.full_like(out, math.log(2.0 * repeats) - 4.0))
        d_logits, d_values = torch.autograd.grad(out, (logits, values))
        half = 0.5 / repeats
        torch.testing.assert_close(d_logits.view(-1, 3)[0], torch.tensor([half, 0.0, -half]).to(d_logits))
        torch.testing.assert_close(d_values.view(-1, 3)[0], torch.tensor([half, 0.0, half]).to(d_values))


def test_values_that_are_not_finite(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    rows = {
        (0.0, INFINITY, 0.0): INFINITY,
        (0.0, -INFINITY, 0.0): -INFINITY,
        (-INFINITY, INFINITY, 0.0): math.nan,
        (0.0, math.nan, 0.0): math.nan,
    }
    values = torch.tensor(list(rows), device=device, dtype=dtype)
    expected = torch.tensor(list(rows.values()), device=device, dtype=dtype)
    for logits in ([0.0, 0.0, 0.0], [0.0, 5.0, 0.0]):  # the special value among equal logits, and with the largest logit
        out = ops.marginalize_labels(torch.tensor(logits, device=device, dtype=dtype), values)
        torch.testing.assert_close(out, expected, equal_nan=True)


@implementations
def test_logits_that_are_not_finite(marginalize, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    rows = [[0.0, math.nan, 1.0], [INFINITY, 0.0, 0.0], [-INFINITY] * 3, [math.nan] * 3]
    logits = torch.tensor(rows, device=device, dtype=dtype, requires_grad=True)
    values = torch.zeros(3, device=device, dtype=dtype, requires_grad=True)
    out = marginalize(logits, values)
    assert bool(out.isnan().all())
    for gradient in torch.autograd.grad(out.sum(), (logits, values)):
        assert bool(gradient.isnan().all())


def test_no_label(device: str) -> None:
    """The sum over no labels must be 0."""
    logits = torch.zeros(3, 0, device=device, requires_grad=True)
    out = ops.marginalize_labels(logits, torch.zeros(2, 1, 0, device=device))
    assert torch.equal(out, torch.zeros(2, 3, device=device))
    assert torch.autograd.grad(out.sum(), logits)[0].shape == (3, 0)

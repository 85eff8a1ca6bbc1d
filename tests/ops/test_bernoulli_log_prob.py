"""bernoulli_log_prob against torch.distributions, exact values, and the fact that probabilities sum to 1."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dgmfast import ops, reference

implementations = pytest.mark.parametrize(
    "log_prob", [ops.bernoulli_log_prob, reference.bernoulli_log_prob], ids=["op", "reference"]
)


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    logits = 4.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.to(device, dtype), torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@implementations
def test_agrees_with_torch(log_prob, device: str) -> None:
    logits, x = draw(4, 100, device=device)
    torch.testing.assert_close(log_prob(logits, x), -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1))
    binary = x.round()
    torch.testing.assert_close(log_prob(logits, binary), torch.distributions.Bernoulli(logits=logits).log_prob(binary).sum(-1))


@implementations
def test_sums_to_one(log_prob, device: str) -> None:
    logits, _ = draw(1, 10, device=device)
    x = torch.tensor(list(product([0, 1], repeat=10)), dtype=torch.uint8, device=device)
    assert abs(float(log_prob(logits, x).exp().sum()) - 1.0) < 1e-12


def test_the_dtype_of_x_does_not_matter(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    for dim in (1, 31, 32, 33, 784):
        logits, x = draw(3, dim, device=device, dtype=dtype)
        logits.requires_grad_()
        binary = x.round()
        expected = ops.bernoulli_log_prob(logits, binary)
        gradient = torch.autograd.grad(expected.sum(), logits)[0]
        for other in (torch.bool, torch.uint8):
            out = ops.bernoulli_log_prob(logits, binary.to(other))
            assert torch.equal(out, expected)
            assert torch.equal(torch.autograd.grad(out.sum(), logits)[0], gradient)


@implementations
def test_extreme_logits(log_prob, path_dtype: tuple[str, torch.dtype]) -> None:
    """A sure pixel costs nothing if right and its logit if wrong, without overflow."""
    device, dtype = path_dtype
    large = 256.0 if dtype == torch.float16 else 1e4  # a hundred of them must not overflow
    logits = torch.tensor([[large], [-large], [large], [-large], [0.0]], device=device, dtype=dtype)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]], device=device, dtype=dtype)
    large = float(logits[0])
    expected = torch.tensor([0.0, 0.0, -large, -large, -math.log(2.0)], device=device, dtype=torch.float64)
    for dim in (1, 100):  # the tail of a vector, and whole vectors
        out = log_prob(logits.expand(-1, dim), x.expand(-1, dim))
        torch.testing.assert_close(out.double(), dim * expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@implementations
def test_gradient_is_x_minus_the_probability(log_prob, path_dtype: tuple[str, torch.dtype]) -> None:
    """Also at logits of 0, where a formula with |l| or max(l, 0) has a kink, and at ±1e4."""
    device, dtype = path_dtype
    logits = torch.tensor([[0.0, 1e4, -1e4, 2.0, -0.0]], device=device, dtype=dtype).requires_grad_()
    x = torch.tensor([[1.0, 1.0, 1.0, 0.25, 0.0]], device=device, dtype=dtype)
    (gradient,) = torch.autograd.grad(log_prob(logits, x).sum(), logits)
    expected = x.double() - torch.sigmoid(logits.detach().double())
    torch.testing.assert_close(gradient.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


# the softplus factors are multiplied up in 32 products, of which each takes 120 factors in float32 and 1000 in float64
@pytest.mark.parametrize("dim", [32 * 120 - 1, 32 * 120, 32 * 120 + 1, 2 * 32 * 120 + 33, 32 * 1000, 32 * 1000 + 1])
def test_products_of_factors_do_not_overflow(dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """Logits of 0 give the largest factors, 2."""
    device, dtype = path_dtype
    if dtype == torch.float16:
        pytest.skip("the sum is beyond float16")
    zero = torch.zeros(2, dim, device=device, dtype=dtype)
    out = ops.bernoulli_log_prob(zero, zero)
    expected = torch.full_like(out, -dim * math.log(2.0))
    torch.testing.assert_close(out, expected, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


def test_values_between_0_and_1_have_a_gradient(device: str) -> None:
    logits, x = draw(3, 40, device=device)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.bernoulli_log_prob(logits, x).sum(), x)
    assert torch.equal(gradient, logits)
    assert not ops.bernoulli_log_prob(logits, x.detach().round().bool()).requires_grad


@pytest.mark.parametrize("size", [3.0, 9.0, 17.0, 20.0, 40.0])
def test_sure_logits_keep_their_digits(size: float, path_device: str) -> None:
    """log(1 + e^−|l|) of logits that are sure of every pixel: the error is relative to the sum, not to the number of pixels."""
    x = (torch.rand(5, 784, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    logits = ((2.0 * x - 1.0) * (size + torch.rand(5, 784, generator=torch.Generator().manual_seed(2)))).float()
    truth = -torch.log1p(torch.exp(-logits.double().abs())).sum(1)
    found = ops.bernoulli_log_prob(logits.to(path_device), x.to(path_device)).double().cpu()
    # exp to 2 roundings, and sums of 784 positive terms cut in lanes of at most 128
    assert bool(((found - truth).abs() <= 140 * torch.finfo(torch.float32).eps * truth.abs()).all())

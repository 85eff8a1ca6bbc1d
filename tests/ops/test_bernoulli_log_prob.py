"""Tests of bernoulli_log_prob against torch.distributions and exact values; its probabilities must sum to 1."""

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
    """A certain pixel must cost nothing if it is right and its logit if it is wrong, without overflow."""
    device, dtype = path_dtype
    large = 256.0 if dtype == torch.float16 else 1e4  # a hundred of these must not overflow
    logits = torch.tensor([[large], [-large], [large], [-large], [0.0]], device=device, dtype=dtype)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]], device=device, dtype=dtype)
    large = float(logits[0])
    expected = torch.tensor([0.0, 0.0, -large, -large, -math.log(2.0)], device=device, dtype=torch.float64)
    for dim in (1, 100):  # the tail of a vector, and whole vectors
        out = log_prob(logits.expand(-1, dim), x.expand(-1, dim))
        torch.testing.assert_close(out.double(), dim * expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@implementations
def test_gradient_is_x_minus_the_probability(log_prob, path_dtype: tuple[str, torch.dtype]) -> None:
    """The gradient must be exact also at logits of ±1e4 and of 0, where formulas with |l| or max(l, 0) have a kink."""
    device, dtype = path_dtype
    logits = torch.tensor([[0.0, 1e4, -1e4, 2.0, -0.0]], device=device, dtype=dtype).requires_grad_()
    x = torch.tensor([[1.0, 1.0, 1.0, 0.25, 0.0]], device=device, dtype=dtype)
    (gradient,) = torch.autograd.grad(log_prob(logits, x).sum(), logits)
    expected = x.double() - torch.sigmoid(logits.detach().double())
    torch.testing.assert_close(gradient.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


# The kernel multiplies the softplus factors up in 32 products; each takes 120 factors in float32 and 1000 in float64.
@pytest.mark.parametrize("dim", [32 * 120 - 1, 32 * 120, 32 * 120 + 1, 2 * 32 * 120 + 33, 32 * 1000, 32 * 1000 + 1])
def test_products_of_factors_do_not_overflow(dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """Logits of 0, which give the largest factors (2), must not overflow the products."""
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
    """For logits that are certain of every pixel, the error must be relative to the sum, not to the number of pixels."""
    x = (torch.rand(5, 784, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    logits = ((2.0 * x - 1.0) * (size + torch.rand(5, 784, generator=torch.Generator().manual_seed(2)))).float()
    truth = -torch.log1p(torch.exp(-logits.double().abs())).sum(1)
    found = ops.bernoulli_log_prob(logits.to(path_device), x.to(path_device)).double().cpu()
    # exp has an error of 2 roundings, and 784 positive terms are summed in lanes of at most 128.
    assert bool(((found - truth).abs() <= 140 * torch.finfo(torch.float32).eps * truth.abs()).all())


# Probabilities in place of logits

PROBABILITIES = torch.cat(
    [torch.logspace(-30, -1, 200), torch.linspace(0.1, 0.9, 300), 1.0 - torch.logspace(-7.2, -1, 200)]
).float()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_probabilities_keep_their_digits(value: float, device: str) -> None:
    """From p = 1e-30 to p = 1 − 6e-8 the error must be a few roundings of the result, and of the gradient's terms."""
    probs = PROBABILITIES.to(device)[:, None].requires_grad_()
    x = torch.full_like(probs, value)
    exact = probs.detach().double()
    truth = (value * exact.log() + (1.0 - value) * torch.log1p(-exact)).sum(-1)
    found = ops.bernoulli_log_prob(probs=probs, x=x)
    torch.testing.assert_close(found.double(), truth, rtol=4 * torch.finfo(torch.float32).eps, atol=0.0)
    (gradient,) = torch.autograd.grad(found.sum(), probs)
    terms = value / exact, (1.0 - value) / (1.0 - exact)
    assert bool(((gradient - (terms[0] - terms[1])).abs() <= 4 * torch.finfo(torch.float32).eps * (terms[0] + terms[1])).all())


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_logit_of_probabilities_keeps_its_digits(value: float, device: str) -> None:
    """The one-liner must have an error of a few roundings of the larger of the result and 1 nat."""
    probs = PROBABILITIES.to(device)[:, None]
    exact = probs.double()
    truth = (value * exact.log() + (1.0 - value) * torch.log1p(-exact)).sum(-1)
    found = ops.bernoulli_log_prob(torch.logit(probs), torch.full_like(probs, value)).double()
    assert bool(((found - truth).abs() <= 4 * torch.finfo(torch.float32).eps * truth.abs().clamp(min=1.0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_probabilities_of_0_and_1(dtype: torch.dtype, device: str) -> None:
    """Where x agrees, the value must be 0 to a rounding and the gradient ±1; where it does not, both must be finite."""
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    limits = torch.finfo(computed)
    p, x = (torch.tensor(row, dtype=dtype, device=device) for row in ([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]))
    p.requires_grad_()
    found = ops.bernoulli_log_prob(probs=p[:, None], x=x[:, None])
    expected = torch.tensor([0.0, 0.0, math.log(limits.tiny), math.log(0.5 * limits.eps)], dtype=dtype, device=device)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=limits.eps)
    (gradient,) = torch.autograd.grad(found.sum(), p)
    torch.testing.assert_close(gradient[:2].tolist(), [-1.0, 1.0], rtol=2 * limits.eps, atol=0.0)
    assert bool(gradient.isfinite().all())
    one_liner = ops.bernoulli_log_prob(torch.logit(p.detach())[:, None], x[:, None])
    assert one_liner[:2].isnan().all()  # as the docstring says


def test_probabilities_take_what_logits_take(device: str) -> None:
    """Broadcasting, dtypes of x, vmap, compile and second derivatives."""
    logits, x = draw(3, 1, 20, device=device)
    x = torch.cat([x.round(), 1.0 - x.round()], 1)
    probs = torch.sigmoid(logits)
    expected = ops.bernoulli_log_prob(logits, x)
    for given in (x, x.bool(), x.to(torch.uint8)):
        torch.testing.assert_close(ops.bernoulli_log_prob(probs=probs, x=given), expected)
    compiled = torch.compile(lambda p, x: ops.bernoulli_log_prob(probs=p, x=x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(probs, x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda p, x: ops.bernoulli_log_prob(probs=p, x=x))(probs, x), expected)
    hessian = torch.func.hessian(lambda p: ops.bernoulli_log_prob(probs=p, x=x[0, 0]))(probs[0, 0])
    torch.testing.assert_close(hessian.diagonal(), -(x / probs**2 + (1 - x) / (1 - probs) ** 2)[0, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.bernoulli_log_prob(probs=probs.bfloat16().cpu(), x=x.cpu().float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": torch.ones(2, 3)}, ValueError, "logits or probs must be None; got both"),
        ({"probs": [0.5]}, TypeError, "probs must be a tensor; got list"),
        ({"x": None}, TypeError, "x must be a tensor; got NoneType"),
        ({"x": torch.ones(2, 5)}, ValueError, "x must have the last dimension of probs, [2, 3]; got [2, 5]"),
        ({"x": torch.ones(2, 3).double()}, TypeError, "x must have the dtype of probs, float32; got float64"),
        ({"probs": torch.ones(2, 3).int()}, TypeError, "probs must be float32, float64, bfloat16 or float16; got int32"),
        ({"probs": torch.ones(2, 3).half()}, TypeError, "x must have the dtype of probs, float16; got float32"),
        ({"x": torch.ones(2, 3, device="meta")}, ValueError, "x must be on the device of probs, cpu; got meta"),
    ],
)
def test_wrong_probabilities(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"probs": torch.full((2, 3), 0.5), "x": torch.ones(2, 3)} | arguments
    with pytest.raises(error) as caught:
        ops.bernoulli_log_prob(**given)
    assert str(caught.value) == f"bernoulli_log_prob: {message}"

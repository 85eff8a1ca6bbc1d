"""Tests of gaussian_log_prob against torch.distributions and exact values; the density must integrate to 1."""

from __future__ import annotations

import math

import pytest
import torch

from dgmfast import ops, reference

implementations = pytest.mark.parametrize(
    "log_prob", [ops.gaussian_log_prob, reference.gaussian_log_prob], ids=["op", "reference"]
)
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(3)]


@implementations
def test_agrees_with_torch_distributions(log_prob, device: str) -> None:
    x, mean, log_var = draw(4, 33, device=device)
    expected = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(log_prob(x, mean, log_var), expected)
    torch.testing.assert_close(log_prob(x), torch.distributions.Normal(torch.zeros_like(x), 1.0).log_prob(x).sum(-1))


@implementations
def test_integrates_to_one(log_prob, device: str) -> None:
    """The density must integrate to 1 by the trapezoidal rule, which at this step is exact to rounding for a Gaussian."""
    mean, log_var = torch.tensor([[0.7]], device=device).double(), torch.tensor([[-0.9]], device=device).double()
    x = torch.linspace(-15.0, 15.0, 20_001, device=device, dtype=torch.float64).unsqueeze(-1)
    assert abs(float(log_prob(x, mean, log_var).exp().sum() * 30.0 / 20_000) - 1.0) < 1e-12


@implementations
@pytest.mark.parametrize("dim", [1, 64, 1000])
def test_known_values(log_prob, dim: int, device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    zero = torch.zeros(2, dim, device=device, dtype=dtype)
    rounding = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(log_prob(zero), torch.full_like(zero[:, 0], -dim * HALF_LOG_2PI), **rounding)
    torch.testing.assert_close(
        log_prob(zero, zero, zero + 2.0), torch.full_like(zero[:, 0], -dim * (HALF_LOG_2PI + 1.0)), **rounding
    )
    torch.testing.assert_close(log_prob(zero + 2.0), torch.full_like(zero[:, 0], -dim * (HALF_LOG_2PI + 2.0)), **rounding)


def test_left_out_arguments_are_zero(device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    x, mean, log_var = draw(3, 70, device=device, dtype=dtype)
    zero = torch.zeros_like(x)
    rounding = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(ops.gaussian_log_prob(x), ops.gaussian_log_prob(x, zero, zero), **rounding)
    torch.testing.assert_close(ops.gaussian_log_prob(x, mean), ops.gaussian_log_prob(x, mean, zero), **rounding)
    torch.testing.assert_close(ops.gaussian_log_prob(x, log_var=log_var), ops.gaussian_log_prob(x, zero, log_var), **rounding)
    assert torch.equal(ops.gaussian_log_prob(x, None, log_var), ops.gaussian_log_prob(x, log_var=log_var))


def test_x_may_be_the_broadcast_argument(device: str) -> None:
    """For one x against many means, as in a mixture, the gradient of x must be a sum over the means."""
    x, mean, log_var = (t.requires_grad_() for t in draw(5, 9, device=device))
    row = x.detach()[0].clone().requires_grad_()
    out = ops.gaussian_log_prob(row, mean, log_var)
    assert out.shape == (5,)
    expected = torch.stack([ops.gaussian_log_prob(row, mean[i], log_var[i]) for i in range(5)])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), row)[0], torch.autograd.grad(expected.sum(), row)[0])

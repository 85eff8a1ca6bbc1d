"""Tests of gaussian_kl against torch.distributions, exact values, inequalities and a Monte Carlo mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_cases import DEVICES

from dgmfast import ops, reference

implementations = pytest.mark.parametrize("kl", [ops.gaussian_kl, reference.gaussian_kl], ids=["op", "reference"])


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64, n: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(n)]


@implementations
def test_agrees_with_torch_distributions(kl, device: str) -> None:
    mean_q, log_var_q, mean_p, log_var_p = draw(4, 33, device=device)
    q = torch.distributions.Normal(mean_q, (0.5 * log_var_q).exp())
    p = torch.distributions.Normal(mean_p, (0.5 * log_var_p).exp())
    torch.testing.assert_close(kl(mean_q, log_var_q, mean_p, log_var_p), torch.distributions.kl_divergence(q, p).sum(-1))
    standard = torch.distributions.Normal(torch.zeros_like(mean_q), 1.0)
    torch.testing.assert_close(kl(mean_q, log_var_q), torch.distributions.kl_divergence(q, standard).sum(-1))


@implementations
def test_known_values(kl, device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    zero, one = torch.zeros(2, 8, device=device, dtype=dtype), torch.ones(2, 8, device=device, dtype=dtype)
    assert torch.equal(kl(zero, zero), zero[:, 0])  # KL(N(0, I) ‖ N(0, I)) has no rounding error
    assert torch.equal(kl(one, zero), torch.full_like(zero[:, 0], 4.0))  # ½ per dimension
    assert torch.equal(kl(one, zero, one, zero), zero[:, 0])
    expected = 4.0 * (torch.tensor(1.0, dtype=torch.float64).exp() - 2.0)  # ½ (e − 1 − 1) per dimension
    torch.testing.assert_close(kl(zero, one).double().cpu(), expected.expand(2), rtol=4 * torch.finfo(dtype).eps, atol=0.0)


def test_left_out_arguments_are_zero(device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    mean_q, log_var_q, mean_p, log_var_p = draw(3, 70, device=device, dtype=dtype)
    zero = torch.zeros_like(mean_q)
    rounding = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(ops.gaussian_kl(mean_q, log_var_q), ops.gaussian_kl(mean_q, log_var_q, zero, zero), **rounding)
    expected = ops.gaussian_kl(mean_q, log_var_q, mean_p, zero)
    torch.testing.assert_close(ops.gaussian_kl(mean_q, log_var_q, mean_p), expected, **rounding)
    expected = ops.gaussian_kl(mean_q, log_var_q, zero, log_var_p)
    torch.testing.assert_close(ops.gaussian_kl(mean_q, log_var_q, log_var_p=log_var_p), expected, **rounding)
    assert torch.equal(
        ops.gaussian_kl(mean_q, log_var_q, None, log_var_p), ops.gaussian_kl(mean_q, log_var_q, log_var_p=log_var_p)
    )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(values=st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), scale=st.sampled_from([1.0, 1e-2, 1e-4]))
def test_never_negative(device: str, values: list[float], scale: float) -> None:
    """The KL must not be below 0 by more than the rounding of e^d − 1 − d, also where q and p nearly coincide."""
    mean_q, log_var_q, mean_p, log_var_p = (torch.full((1, 16), v, device=device) for v in values)
    near = (mean_p + scale * mean_q, log_var_p + scale * log_var_q)
    assert ops.gaussian_kl(*near, mean_p, log_var_p) >= -16 * torch.finfo(torch.float32).eps
    assert ops.gaussian_kl(mean_q, log_var_q) >= -16 * torch.finfo(torch.float32).eps


def test_is_the_mean_log_ratio_of_draws(device: str) -> None:
    mean_q, log_var_q, mean_p, log_var_p = (0.5 * t for t in draw(2, 6, device=device, dtype=torch.float32))
    z, log_q = ops.gaussian_sample(mean_q, log_var_q, 200_000, seed=11)
    ratio = log_q - ops.gaussian_log_prob(z, mean_p.unsqueeze(1), log_var_p.unsqueeze(1))
    error = (ratio.mean(1) - ops.gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)).abs()
    assert bool((error < 4.5 * ratio.std(1) / ratio.shape[1] ** 0.5).all())


def test_gradient_vanishes_where_q_is_p(device: str) -> None:
    mean, log_var = (t.requires_grad_() for t in draw(3, 20, device=device, n=2))
    grads = torch.autograd.grad(ops.gaussian_kl(mean, log_var, mean.detach(), log_var.detach()).sum(), (mean, log_var))
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)

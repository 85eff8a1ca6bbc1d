"""Tests of gaussian_merge against its definition: the product of two densities is proportional to the density of the result."""

from __future__ import annotations

import pytest
import torch

from dgmfast import ops, reference

implementations = pytest.mark.parametrize("merge", [ops.gaussian_merge, reference.gaussian_merge], ids=["op", "reference"])


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [2.0 * torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(4)]


def row(device: str, dtype: torch.dtype, *values: float) -> list[torch.Tensor]:
    return [torch.tensor([[value]], device=device, dtype=dtype) for value in values]


@implementations
def test_is_the_product_of_the_densities(merge, device: str) -> None:
    mean_q, log_var_q, mean_p, log_var_p = draw(40, 1, device=device)
    mean, log_var = merge(mean_q, log_var_q, mean_p, log_var_p)
    x = torch.linspace(-3.0, 3.0, 11, device=device, dtype=torch.float64).view(-1, 1, 1)
    normal = reference.gaussian_log_prob
    constant = normal(x, mean_q, log_var_q) + normal(x, mean_p, log_var_p) - normal(x, mean, log_var)
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-10, atol=1e-10)


@implementations
def test_precisions_add(merge, device: str) -> None:
    mean_q, log_var_q, mean_p, log_var_p = draw(3, 33, device=device)
    mean, log_var = merge(mean_q, log_var_q, mean_p, log_var_p)
    precision_q, precision_p = (-log_var_q).exp(), (-log_var_p).exp()
    torch.testing.assert_close((-log_var).exp(), precision_q + precision_p)
    torch.testing.assert_close(mean, (mean_q * precision_q + mean_p * precision_p) / (precision_q + precision_p))


def test_is_symmetric(device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    mean_q, log_var_q, mean_p, log_var_p = draw(3, 65, device=device, dtype=dtype)
    (mean, log_var), (mirrored_mean, mirrored_log_var) = (
        ops.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p),
        ops.gaussian_merge(mean_p, log_var_p, mean_q, log_var_q),
    )
    size = torch.maximum(mean_q.abs(), mean_p.abs()).double()
    assert bool(((mean - mirrored_mean).abs().double() <= 8 * torch.finfo(dtype).eps * size).all())
    torch.testing.assert_close(log_var, mirrored_log_var, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@implementations
def test_a_flat_density_changes_nothing(merge, device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    mean_q, log_var_q, mean_p, _ = draw(3, 65, device=device, dtype=dtype)
    mean, log_var = merge(mean_q, log_var_q, mean_p, torch.full_like(mean_p, 100.0))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(log_var, log_var_q, rtol=2 * eps, atol=2 * eps)
    assert bool(((mean - mean_q).abs() <= 4 * eps * torch.maximum(mean_q.abs(), mean_p.abs())).all())


@implementations
def test_a_sharp_density_wins_exactly(merge, path_dtype: tuple[str, torch.dtype]) -> None:
    """If the weight of a density rounds to 1, the result must have exactly its mean, however far away the other mean is."""
    device, dtype = path_dtype
    far = 1e4 if dtype == torch.float16 else 1e8
    mean, log_var = merge(*row(device, dtype, 1.0, -100.0, far, 0.0))
    assert (mean.item(), log_var.item()) == (1.0, -100.0)
    mean, log_var = merge(*row(device, dtype, far, 0.0, 1.0, -100.0))
    assert (mean.item(), log_var.item()) == (1.0, -100.0)


@implementations
def test_infinite_variances(merge, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    infinity = float("inf")
    assert merge(*row(device, dtype, 0.0, infinity, 0.0, infinity))[1].item() == infinity
    assert merge(*row(device, dtype, 0.0, -infinity, 0.0, -infinity))[1].item() == -infinity
    mean, log_var = merge(*row(device, dtype, 2.0, 1.0, 5.0, infinity))
    assert (mean.item(), log_var.item()) == (2.0, 1.0)
    mean, log_var = merge(*row(device, dtype, 2.0, 1.0, infinity, 1.0))
    assert mean.item() == infinity


def test_both_outputs_have_the_broadcast_shape(device: str) -> None:
    mean_q, log_var_q, mean_p, log_var_p = draw(4, 1, 6, device=device)
    mean, log_var = ops.gaussian_merge(mean_q, log_var_q[:1, 0], mean_p.expand(4, 3, 6), log_var_p[0, 0])
    assert mean.shape == log_var.shape == (4, 3, 6)

"""Tests of from_normal and to_normal, the way from torch.distributions to the Gaussian ops and back."""

from __future__ import annotations

import re

import pytest
import torch
from torch.distributions import Distribution, Independent, LogNormal, MultivariateNormal, Normal, kl_divergence

from dgmfast import ops


def draw(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mean, log_var = torch.randn((2, *shape), generator=generator, dtype=torch.float64).unbind()
    return mean.requires_grad_(), log_var.requires_grad_()


@pytest.mark.parametrize("nested", [0, 1, 2])
def test_from_normal(nested: int) -> None:
    """Values and gradients of the KL must be those of torch, however deep the Normal is wrapped."""
    loc, log_scale = draw(4, 3, 5)
    q, p = Normal(loc, log_scale.exp()), Normal(torch.zeros_like(loc), torch.ones_like(loc))
    wrapped: Distribution = q
    for _ in range(nested):
        wrapped = Independent(wrapped, 1)
    found = ops.gaussian_kl(*ops.from_normal(wrapped))
    expected = kl_divergence(Independent(q, 1), Independent(p, 1))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(kl.sum(), (loc, log_scale), retain_graph=True) for kl in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_to_normal() -> None:
    mean, log_var = draw(4, 5)
    x = torch.randn(4, 5, dtype=torch.float64)
    normal = ops.to_normal(mean, log_var)
    assert isinstance(normal, Normal) and normal.batch_shape == (4, 5)
    found, expected = Independent(normal, 1).log_prob(x), ops.gaussian_log_prob(x, mean, log_var)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value.sum(), (mean, log_var), retain_graph=True) for value in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(ops.from_normal(normal), (mean, log_var), strict=True):
        torch.testing.assert_close(a, b)
    assert ops.to_normal(mean, torch.zeros(())).batch_shape == (4, 5)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        (LogNormal(torch.zeros(3), torch.ones(3)), "LogNormal"),
        (MultivariateNormal(torch.zeros(3), torch.eye(3)), "MultivariateNormal"),
        (Independent(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)), 1), "Laplace"),
        (torch.zeros(3), "Tensor"),
        (None, "NoneType"),
    ],
)
def test_other_distributions_are_refused(distribution: object, name: str) -> None:
    message = f"from_normal: normal must be a Normal or an Independent of one; got {name}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        ops.from_normal(distribution)


def test_to_normal_wants_tensors() -> None:
    with pytest.raises(TypeError, match=r"^to_normal: mean must be a tensor; got float$"):
        ops.to_normal(0.0, torch.zeros(3))
    with pytest.raises(TypeError, match=r"^to_normal: log_var must be a tensor; got list$"):
        ops.to_normal(torch.zeros(3), [0.0])

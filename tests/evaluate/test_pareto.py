"""Tests of Pareto k̂ against ArviZ, against the exact distribution, and for weights that arrive in parts."""

import math

import pytest
import torch

from dgmfast.evaluate.pareto import Tail, generalized_pareto_shape, tail_size

# (K, spread) -> k̂ from arviz-stats 0.8.0, for log w at the quantiles of N(-90, spread²)
BY_ARVIZ = {
    (25, 1.0): 0.450154821184838,
    (200, 0.5): 0.15400138399897384,
    (226, 2.0): 0.714371206006316,
    (1000, 1.5): 0.47607971387428955,
    (1000, 4.0): 1.4398513959425079,
}


def quantiles(k: int, spread: float) -> torch.Tensor:
    levels = (torch.arange(1, k + 1, dtype=torch.float64) - 0.5) / k
    return spread * torch.special.ndtri(levels) - 90.0


def pareto_k(log_w: torch.Tensor, step: int = 97) -> torch.Tensor:
    k = log_w.shape[1]
    tail = Tail(k)
    for begin in range(0, k, step):
        tail.update(log_w[:, begin : begin + step])
    return tail.pareto_k(torch.full(log_w.shape[:1], k))


@pytest.mark.parametrize(("k", "spread"), BY_ARVIZ)
def test_is_arviz_s(k, spread, device):
    generator = torch.Generator().manual_seed(0)
    log_w = quantiles(k, spread)[torch.randperm(k, generator=generator)].to(device)
    found = pareto_k(torch.stack([log_w, log_w.flip(0) + 900.0]))  # a constant factor of the weights changes nothing
    torch.testing.assert_close(found.cpu(), torch.full((2,), BY_ARVIZ[k, spread], dtype=torch.float64), rtol=1e-8, atol=0.0)


def test_is_arviz_s_where_it_is_installed():
    arviz = pytest.importorskip("arviz_stats.base", reason="ArviZ is not installed").array_stats
    generator = torch.Generator().manual_seed(1)
    for k in (25, 224, 225, 226, 5000):
        log_w = 2.0 * torch.randn(3, k, generator=generator, dtype=torch.float64)
        expected = torch.tensor([float(arviz.psislw(-row.numpy())[1]) for row in log_w], dtype=torch.float64)
        torch.testing.assert_close(pareto_k(log_w), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [0.2, 0.7, 1.5])
def test_finds_the_shape_of_the_distribution(shape):
    """From quantiles of the distribution, k̂ must be its shape, averaged with the prior of ten weights of shape ½."""
    n = 2000
    levels = (torch.arange(n, 0, -1, dtype=torch.float64) - 0.5) / n
    w = torch.cat([((1 - levels) ** -shape - 1) / shape + 1.0, torch.ones(1, dtype=torch.float64)])
    found = generalized_pareto_shape(w.log().unsqueeze(0)).item()
    assert found == pytest.approx((n * shape + 10 * 0.5) / (n + 10), abs=0.02)


def test_the_parts_do_not_matter_and_memory_grows_with_the_root_of_k():
    generator = torch.Generator().manual_seed(2)
    log_w = 3.0 * torch.randn(2, 3000, generator=generator)
    whole = pareto_k(log_w, 3000)
    assert all(torch.equal(pareto_k(log_w, step), whole) for step in (1, 250, 999))
    tail, most = Tail(1_000_000), 0
    for _ in range(40):
        tail.update(log_w)
        most = max(most, sum(part.shape[1] for part in tail._kept))
    assert most <= 2 * 3001 and tail_size(1_000_000) == 3000


def test_rows_of_different_counts():
    log_w = quantiles(1000, 2.0).flip(0).repeat(2, 1)
    tail = Tail(1000)
    tail.update(log_w.where(torch.tensor([[True], [False]]) | (torch.arange(1000) < 226), -math.inf))
    found = tail.pareto_k(torch.tensor([1000, 226]))
    assert torch.equal(found[0], pareto_k(log_w)[0]) and torch.equal(found[1], pareto_k(log_w[:, :226])[1])


@pytest.mark.parametrize("log_w", [torch.zeros(1, 24), torch.zeros(1, 500), torch.full((1, 500), -math.inf)])
def test_no_fit(log_w):
    assert pareto_k(log_w).isnan().all()

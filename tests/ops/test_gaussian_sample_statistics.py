"""Tests with fixed seeds that about a million draws of gaussian_sample look like independent standard normals."""

from __future__ import annotations

import math

import pytest
import torch
from support.noise import noise
from torch import Tensor

N = 2**20
# For the two dozen statistics below, one beyond 4.5 standard errors would occur by chance in one of six thousand runs.
LIMIT = 4.5


def draws(seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns 2^20 draws over all coordinates."""
    return noise(64, 64, 256, device, dtype, seed=seed).double().cpu().flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 12345])
def test_moments(seed: int, dtype: torch.dtype, device: str) -> None:
    z = draws(seed, device, dtype)
    moments = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0), 6: (15.0, 10170.0)}  # mean and variance of z^p
    for power, (expected, variance) in moments.items():
        assert abs(float(z.pow(power).mean()) - expected) < LIMIT * math.sqrt(variance / N), power


def kolmogorov_p_value(z: Tensor) -> float:
    """Returns the p-value P(K > √n D) of the hypothesis that z is standard normal, by Kolmogorov's asymptotic series."""
    n = len(z)
    cdf = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))
    t = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    return 2.0 * sum((-1) ** (j - 1) * math.exp(-2.0 * j * j * t * t) for j in range(1, 101))


def test_the_kolmogorov_test_tells_wrong_distributions() -> None:
    z = draws(1, "cpu")
    assert kolmogorov_p_value(1.01 * z) < 1e-3
    assert kolmogorov_p_value(z + 0.005) < 1e-3
    assert kolmogorov_p_value(torch.where(z > 3.0, -z, z)) < 0.05


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_kolmogorov_smirnov(seed: int, device: str) -> None:
    assert kolmogorov_p_value(draws(seed, device)) > 1e-3


def test_each_lane_is_normal(device: str) -> None:
    """Every dimension of a group of 64, which has its own word or its own half of a Box–Muller pair, must be normal."""
    z = noise(128, 64, 128, device, torch.float32, seed=4).double().cpu().flatten(0, 1)
    for d in range(128):
        assert kolmogorov_p_value(z[:, d]) > 1e-5, d


@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.0, 4.0, 4.75])
def test_tails(threshold: float, device: str) -> None:
    z = torch.cat([draws(seed, device) for seed in range(20, 24)])
    tail = 0.5 * math.erfc(threshold / math.sqrt(2.0))
    for count in (int((z > threshold).sum()), int((z < -threshold).sum())):
        assert abs(count - tail * len(z)) < LIMIT * math.sqrt(tail * len(z)), threshold
    assert float(z.abs().max()) < 6.8


def correlated(a: Tensor, b: Tensor) -> float:
    """Returns the correlation of two sets of standard normals, or of their squares if larger, in standard errors."""
    a, b = a.double().cpu().flatten(), b.double().cpu().flatten()
    n = math.sqrt(len(a))
    return max(abs(float((a * b).mean())) * n, abs(float(((a * a - 1) * (b * b - 1)).mean())) / 2.0 * n)


def test_the_correlation_test_tells_dependence() -> None:
    a, b = draws(2, "cpu"), draws(3, "cpu")
    assert correlated(a, b + 0.01 * a) > LIMIT
    assert correlated(a, b * (1.0 + 0.01 * a * a)) > LIMIT


@pytest.mark.parametrize("lag", [1, 2, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 128])
def test_dimensions_are_independent(lag: int, device: str) -> None:
    """Dimensions must be independent, also those that share a Box–Muller radius (16 apart) or a Philox call (32, 48).

    Correlated squares would show a shared radius.
    """
    z = noise(64, 64, 256, device, torch.float32, seed=5)
    assert correlated(z[..., lag:], z[..., :-lag]) < LIMIT


def test_samples_rows_streams_and_seeds_are_independent(device: str) -> None:
    z = noise(65, 65, 256, device, torch.float32, seed=6)
    assert correlated(z[:, 1:], z[:, :-1]) < LIMIT
    assert correlated(z[1:], z[:-1]) < LIMIT
    assert correlated(z, z.transpose(0, 1).contiguous().roll(1, 0)) < LIMIT  # rows against samples
    for other in ({"seed": 7}, {"seed": -6}, {"seed": 6 + 2**32}, {"seed": 6, "stream": 1}, {"seed": 6, "stream": 2**31}):
        assert correlated(noise(65, 65, 256, device, torch.float32, **other), z) < LIMIT, other


def test_no_two_coordinates_are_equal(device: str) -> None:
    """Different coordinates must have different draws in float64, where a draw shows all its 64 random bits."""
    blocks = [
        noise(32, 32, 128, device, seed=seed, stream=stream, first_row=row, first_sample=sample)
        for seed, stream, row, sample in [
            (8, 0, 0, 0),
            (9, 0, 0, 0),
            (8 + 2**32, 0, 0, 0),
            (8, 1, 0, 0),
            (8, 0, 32, 0),
            (8, 0, 0, 32),
            (8, 32, 0, 0),
            (0, 8, 64, 64),
        ]
    ]
    z = torch.cat([block.cpu().flatten() for block in blocks])
    assert len(z.abs().unique()) == len(z)

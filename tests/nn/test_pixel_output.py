"""Tests of PixelOutput: densities, means and errors. test_sampling.py sums its probabilities over all images."""

from __future__ import annotations

import math

import pytest
import torch

from dgmfast.errors import InputError
from dgmfast.nn import PixelOutput


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_logistic_log_prob(levels: int) -> None:
    """In float32 the log-probability must match a precise difference of float64 sigmoids; values and gradients must be finite."""
    output = PixelOutput("logistic", levels)
    mean, log_scale = torch.meshgrid(torch.linspace(-1.5, 1.5, 13), torch.linspace(-9.0, 6.0, 31), indexing="ij")
    params = torch.stack([mean.flatten(), log_scale.flatten()]).unsqueeze(0).unsqueeze(2).requires_grad_()  # [1, 2, 1, 403]
    for level in {0, 1, levels // 2, levels - 1}:
        x = torch.full((1, 1, 1, 1), level / (levels - 1))
        for i in range(params.shape[-1]):
            log_p = output.log_prob(params[..., i : i + 1], x)
            m, s = params[0, :, 0, i].detach().double()
            start, end = ((2 * level + side) / (levels - 1) - 1 for side in (-1, 1))
            below = torch.sigmoid((end - m) * torch.exp(-s.clamp(min=-7))) if level < levels - 1 else torch.tensor(1.0).double()
            above = torch.sigmoid((start - m) * torch.exp(-s.clamp(min=-7))) if level else torch.tensor(0.0).double()
            if below - above > 1e-6:
                assert abs(log_p.item() - (below - above).log().item()) < 2e-4 * (1 + abs(log_p.item()))
            assert math.isfinite(log_p.item())
            (gradient,) = torch.autograd.grad(log_p.sum(), params)
            assert gradient.isfinite().all()


def test_mean() -> None:
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    output = PixelOutput("categorical", 3)
    params = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    expected = sum(
        torch.exp(output.log_prob(params[:, 3 * c : 3 * c + 3, i : i + 1, j : j + 1], v.expand(4, 1, 1, 1))) * v.item()
        for v in x
        for c, i, j in [(1, 1, 2)]
    )
    torch.testing.assert_close(output.mean(params)[:, 1, 1, 2], expected)
    assert torch.equal(PixelOutput().mean(params), params.sigmoid())
    torch.testing.assert_close(PixelOutput("logistic", 9).mean(params), (params[:, ::2] / 2 + 0.5).clamp(0, 1))
    assert [o.channels(3) for o in (PixelOutput(), output, PixelOutput("logistic", 256))] == [3, 9, 6]


def test_errors_of_outputs() -> None:
    with pytest.raises(InputError, match="kind must be one of bernoulli, categorical, logistic; got 'normal'"):
        PixelOutput("normal")
    with pytest.raises(InputError, match="levels must be a whole number of at least 2; got 1"):
        PixelOutput("logistic", 1)
    with pytest.raises(InputError, match="levels must be 2 for bernoulli; got 3"):
        PixelOutput("bernoulli", 3)
    output = PixelOutput("categorical", 4)
    with pytest.raises(InputError, match=r"params must have shape \[N, 4, H, W\] for categorical pixels"):
        output.log_prob(torch.zeros(1, 8, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(InputError, match="x must have the batch and size of params"):
        output.log_prob(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 3))
    for value in (0.5, -0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="x must lie on the 4 levels v/3"):
            output.log_prob(torch.zeros(1, 4, 2, 2), torch.full((1, 1, 2, 2), value))
    output.log_prob(torch.zeros(1, 4, 2, 2), torch.full((1, 1, 2, 2), 1 / 3 + 5e-5))

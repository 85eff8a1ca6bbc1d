"""Tests of the output distributions p(x|h): their common behaviour, and draws from those of one layer."""

from __future__ import annotations

import math

import pytest
import torch

from dgmfast.models import Noise
from dgmfast.nn import OUTPUTS, BernoulliOutput, GaussianHead, GaussianOutput

ROWS = 40_000


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_all_outputs_have(name: str) -> None:
    output = OUTPUTS[name](3, 16).eval()
    h, x = torch.randn(2, 1, 3), torch.rand(2, 1, 16).round()
    assert output.log_prob(h, x).shape == (2, 1) and output.mean(h, x).shape == (2, 1, 16)
    draws = output.sample(h, Noise(0))
    assert draws.shape == (2, 1, 16) and torch.equal(draws, output.sample(h, Noise(0)))
    assert not torch.equal(draws, output.sample(h, Noise(1)))
    assert output.autoregressive == (name == "pixelcnn") and output.support in (None, (0.0, 1.0))
    output.init_mean(torch.full((16,), 0.25))
    assert math.isclose(output.mean(0.0 * h, 0.0 * x).mean().item(), 0.25, abs_tol=0.06)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_bernoulli_have_its_mean(temperature: float) -> None:
    output = BernoulliOutput(2, 3)
    x = output.sample(torch.ones(ROWS, 1, 2), Noise(3), temperature).squeeze(1).double()
    expected = torch.sigmoid(output.logits(torch.ones(2)).double() / temperature)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    # The tolerance is five standard errors of the mean.
    assert ((x.mean(0) - expected).abs() < 5.0 * (expected * (1.0 - expected) / ROWS).sqrt()).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_gaussian_have_its_mean_and_variance(temperature: float) -> None:
    output = GaussianOutput(2, 3)
    mean, log_var = (t.detach().double() for t in output.gaussian(torch.ones(2)))
    x = output.sample(torch.ones(ROWS, 1, 2), Noise(3), temperature).squeeze(1).double()
    std = (0.5 * log_var).exp() * temperature
    assert ((x.mean(0) - mean).abs() < 5.0 * std / math.sqrt(ROWS)).all()
    assert ((x.std(0) / std - 1.0).abs() < 5.0 / math.sqrt(2.0 * ROWS)).all()


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_state_dict_of_an_earlier_version_loads(batch_norm: bool) -> None:
    """A state dict of an earlier version must load, in which the layer of the log-variance was called spread."""
    head, other = GaussianHead(2, 3, batch_norm=batch_norm), GaussianHead(2, 3, batch_norm=batch_norm)
    earlier = {name.replace("scale.", "spread."): value for name, value in head.state_dict().items()}
    assert any("spread" in name for name in earlier)
    kept = dict(earlier)
    torch.nn.Sequential(other).load_state_dict({f"0.{name}": value for name, value in earlier.items()})
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in head.state_dict().items()) and earlier == kept

"""Tests of the models that the thesis proposes or only sketches: AuxiliaryLVAE, LabelLVAE and Potential."""

import itertools
import math

import pytest
import torch

from dgmfast import evaluate, models
from dgmfast.models import Noise, SampledLabel, SparseSum
from dgmfast.models.potential import LOG_Z
from dgmfast.objectives import Objective

D, Y = 3, 3
LADDERS = {
    "lvae-auxiliary": {"latent": (2, 1), "hidden": ((5,), (4,)), "auxiliary": 2, "batch_norm": False, "norm_heads": False},
    "lvae-label": {"latent": (2, 1), "hidden": ((5,), (4,)), "num_classes": Y, "batch_norm": False},
}


def make(name: str) -> models.GenerativeModel:
    """Returns a model in float64 with a wide q̂: a merge narrows q, and with a narrow q the weights have no finite variance."""
    torch.manual_seed(3)
    model = models.create(name, x_dim=D, activation="tanh", **LADDERS[name]).double().eval()
    for q_hat in model.q:
        torch.nn.init.constant_(q_hat.scale.bias, 6.0)
    return model


def every_x() -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=D)), dtype=torch.float64)


def total(log_w: torch.Tensor) -> tuple[float, float]:
    """Returns the sum of the rows' mean weights, and its standard error."""
    w = log_w.exp()
    return float(w.mean(1).sum()), float((w.var(1) / w.shape[1]).sum().sqrt())


@pytest.mark.parametrize("name", LADDERS)
def test_the_density_of_all_x_sums_to_one(name):
    """Σ_x E_q[w(x)] = Σ_x p(x) must be 1; a missing or doubled factor, or one at wrong parents, would change the sum."""
    model = make(name)
    ways = [None] if model.num_classes is None else [None, SampledLabel()]
    for y in ways:
        with torch.no_grad():
            sum_, error = total(model.log_weights(every_x(), 20_000, y, seed=1))
        assert abs(sum_ - 1.0) < 4 * error < 0.04


def test_observed_labels_share_out_the_density():
    model, x = make("lvae-label"), every_x()
    parts = [evaluate.log_likelihood(model, x, 20_000, y=torch.full((len(x),), label)) for label in range(Y)]
    joint, whole = torch.stack([part.log_px for part in parts], -1), evaluate.log_likelihood(model, x, 20_000)
    error = torch.stack([part.std_error for part in parts], -1).square().sum(-1).add(whole.std_error.square()).sqrt()
    difference = torch.logsumexp(joint, -1) - whole.log_px
    assert (difference.abs() < 4 * error).all() and error.max() < 0.06


@pytest.mark.parametrize("name", LADDERS)
def test_exact_kl_agrees_with_monte_carlo(name):
    model, x = make(name), every_x()
    with torch.no_grad():
        terms = model.draw(model.encode(x), x, 20_000, Noise(4))
        exact = [layer for layer, latent in terms.latents.items() if latent.exact]
        assert exact == ["z1", "z2"] if name == "lvae-auxiliary" else set(exact) == {"z1", "z2"}
        analytic, sampled = terms.kl_terms(), terms.kl_terms(analytic=False)
    for layer in exact:
        error = sampled[layer].std(1) / math.sqrt(20_000)
        assert ((analytic[layer].mean(1) - sampled[layer].mean(1)).abs() < 5 * error).all()


def test_a_sparse_sum_in_the_ladder_is_unbiased():
    model, x = make("lvae-label"), every_x()
    with torch.no_grad():
        model.q_y.logits.weight *= 8.0  # large enough for labels to be dropped
        sparse, exact = (model.draw(model.encode(x), x, 20_000, Noise(5), y) for y in (SparseSum(0.8), None))
        assert sparse.log_px.numel() < 0.9 * exact.log_px.numel()
        difference = sparse.bound().mean(1) - exact.bound().mean(1)
        error = (sparse.bound().var(1) + exact.bound().var(1)).div(20_000).sqrt()
    assert (difference.abs() < 4 * error).all()


@pytest.mark.parametrize("name", LADDERS)
def test_latents_have_streams_of_their_own(name, monkeypatch):
    model, streams = make(name), []
    gaussian = Noise.gaussian

    def recorded(self, q, k, stream):
        streams.append(stream)
        return gaussian(self, q, k, stream)

    monkeypatch.setattr(Noise, "gaussian", recorded)
    model.draw(model.encode(every_x()), every_x(), 2, Noise(0))
    assert len(set(streams)) == len(streams) == 3 if name == "lvae-auxiliary" else 2


@pytest.mark.parametrize("uninformed", [False, True])
def test_the_potentials_weights_have_the_mean_z(uninformed):
    torch.manual_seed(0)
    model = models.create("potential", uninformed=uninformed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.3
        model.q_z.gaussian.scale.bias.fill_(math.log(4.0))  # q is wider than the target, so the weights have a finite variance
        log_w = model.log_weights(torch.zeros(4, 1, dtype=torch.float64), 200_000, seed=0)
        estimate = evaluate.log_likelihood(model, torch.zeros(4, 1, dtype=torch.float64), 200_000)
    assert ((estimate.log_px - LOG_Z).abs() < 4 * estimate.std_error).all() and estimate.std_error.max() < 0.03
    assert (log_w.mean(1) < LOG_Z).all()


def test_log_z_by_quadrature():
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)
    total_mass = models.Potential.log_target(z).exp().sum() * 0.01**2
    assert abs(math.log(total_mass) - LOG_Z) < 1e-4


def test_the_potential_trains_and_samples():
    torch.manual_seed(0)
    model = models.create("potential")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x = torch.zeros(100, 1)
    with torch.no_grad():
        before = float(Objective().loss(model, x, None, 1.0, seed=99)[0])
    for step in range(100):
        loss, _ = Objective().loss(model, x, None, 1.0, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float(Objective().loss(model, x, None, 1.0, seed=99)[0]) < before - 1.0
    assert model.sample_q(50, seed=1).shape == (50, 2)
    assert torch.equal(model.sample_q(50, seed=1), model.sample_q(50, seed=1))

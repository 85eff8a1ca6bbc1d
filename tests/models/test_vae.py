"""Tests of the VAE and its objectives against their formulas."""

import copy
import math
import pickle

import pytest
import torch
from support.vae import DEVICES, SHAPES, TWO_LAYERS, binary, log_px_by_quadrature, make

from dgmfast import models, reference
from dgmfast.errors import InputError
from dgmfast.models import Noise
from dgmfast.nn import log_softplus
from dgmfast.objectives import Objective


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", SHAPES)
@pytest.mark.parametrize("extra", [{}, {"head": "softplus", "activation": "relu"}, {"batch_norm": True}])
def test_protocol_shapes_and_finite_gradients(device, settings, extra):
    model, x = make(device, **settings, **extra), binary(7, 12, device)
    assert model.log_weights(x, k=4).shape == (7, 4)
    elbo = model.elbo(x, beta=0.5)
    assert elbo.bound.shape == (7,) and set(elbo.kl) == {f"z{i + 1}" for i in range(len(settings["latent"]))}
    torch.testing.assert_close(elbo.bound, elbo.reconstruction - 0.5 * sum(elbo.kl.values()))
    assert model.sample(3).shape == model.reconstruct(x[:3]).shape == (3, 12)
    loss, _ = Objective(k=5, m=2).loss(model, x, None, 1.0, seed=1)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("settings", SHAPES)
def test_where_every_q_equals_its_p_the_weight_is_half_to_the_power_of_d(settings):
    """With all parameters zero, q = p = N(0, I) in every layer and p(x|z) = ½ per pixel, so every weight must be ½^D."""
    model, x = make(**settings).double(), binary(5, 12, dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model.log_weights(x, k=9), torch.full((5, 9), 12 * math.log(0.5), dtype=torch.float64))


def test_log_weights_are_the_sum_of_the_reference_terms():
    model, x = make(**TWO_LAYERS).double(), binary(4, 12, dtype=torch.float64)
    noise = Noise(seed=3)
    z1, z2 = (latent.z for latent in model.infer(model.encode(x), 6, noise).values())
    q1, q2, p1 = model.q[0](x), model.q[1](z1), model.p[0](z2)
    logits = model.output.logits(model.decoder(z1))
    expected = (
        reference.bernoulli_log_prob(logits, x.unsqueeze(1))
        + reference.gaussian_log_prob(z1, *p1)
        + reference.gaussian_log_prob(z2)
        - reference.gaussian_log_prob(z1, q1[0].unsqueeze(1), q1[1].unsqueeze(1))
        - reference.gaussian_log_prob(z2, *q2)
    )
    torch.testing.assert_close(model.log_weights(x, k=6, seed=3), expected)


def test_analytic_kl_is_used_for_the_top_layer_alone_and_agrees_with_monte_carlo():
    model, x = make(**TWO_LAYERS).double(), binary(3, 12, dtype=torch.float64)
    terms = model.draw(model.encode(x), x, 20000, Noise(0))
    assert [name for name, latent in terms.latents.items() if latent.exact] == ["z2"]
    analytic, sampled = terms.kl_terms()["z2"], terms.kl_terms(analytic=False)["z2"]
    error = sampled.std(1) / math.sqrt(sampled.shape[1])
    assert ((analytic.mean(1) - sampled.mean(1)).abs() < 5 * error).all()


def test_layers_do_not_share_noise():
    """Two layers of the same width, mean and variance must have independent draws."""
    model = make(latent=(4, 4), hidden=((), ())).double()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    encoding = model.encode(binary(50, 12, dtype=torch.float64))
    z1, z2 = (latent.z for latent in model.infer(encoding, 200, Noise(0)).values())
    correlation = torch.corrcoef(torch.stack([z1.flatten(), z2.flatten()]))[0, 1]
    assert correlation.abs() < 5 / math.sqrt(z1.numel())


def test_a_batch_in_parts_draws_the_noise_of_the_whole():
    model, x = make(**TWO_LAYERS), binary(9, 12)
    whole = model.log_weights(x, k=8, seed=5)
    parts = torch.cat([model.log_weights(x[:4], 8, seed=5), model.log_weights(x[4:], 8, seed=5, first_row=4)])
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole[:, 3:], model.log_weights(x, 5, seed=5, first_sample=3))


def test_bounds_grow_with_k_towards_the_integral():
    model, x = make(latent=(1,), hidden=((8,),)).double(), binary(6, 12, dtype=torch.float64)
    truth = log_px_by_quadrature(model, x)
    bounds, errors = [], []
    for k in (1, 5, 50):
        bound = torch.logsumexp(model.log_weights(x, k * 4000, seed=k).view(6, 4000, k), 2) - math.log(k)
        bounds.append(bound.mean(1))
        errors.append(bound.std(1) / math.sqrt(4000))
    assert (bounds[1] > bounds[0] - 3 * errors[0]).all() and (bounds[2] > bounds[1] - 3 * errors[1]).all()
    assert (bounds[2] < truth + 4 * errors[2]).all()
    long = torch.logsumexp(model.log_weights(x, 20000, seed=0), 1) - math.log(20000)
    torch.testing.assert_close(long, truth, atol=0.02, rtol=0)


def test_objective_k_1_is_the_elbo_and_monte_carlo_form_agrees_on_average():
    model, x = make(**TWO_LAYERS).double(), binary(5, 12, dtype=torch.float64)
    loss, log = Objective(m=3).loss(model, x, None, 0.7, seed=2)
    elbo = model.elbo(x, beta=0.7, k=3, seed=2)
    torch.testing.assert_close(loss, -elbo.bound.mean())
    torch.testing.assert_close(log["elbo"], model.elbo(x, k=3, seed=2).bound.mean())
    sampled, _ = Objective(m=20000, analytic_kl=False).loss(model, x, None, 1.0, seed=2)
    analytic, _ = Objective(m=20000).loss(model, x, None, 1.0, seed=2)
    torch.testing.assert_close(sampled, analytic, atol=0.02, rtol=0)


def test_importance_objective_with_m_and_k():
    model, x = make(**TWO_LAYERS).double(), binary(5, 12, dtype=torch.float64)
    log_w = model.draw(model.encode(x), x, 6, Noise(4)).log_weights(beta=0.3)
    expected = -(torch.logsumexp(log_w.view(5, 2, 3), 2) - math.log(3)).mean()
    torch.testing.assert_close(Objective(k=3, m=2).loss(model, x, None, 0.3, seed=4)[0], expected)


def test_free_bits_floor_the_kl_of_each_layer_and_stop_its_gradient():
    model, x = make(**TWO_LAYERS).double(), binary(5, 12, dtype=torch.float64)
    terms = model.elbo(x, seed=1)
    kl = [value.mean() for value in terms.kl.values()]
    loss, _ = Objective(free_bits=1000.0).loss(model, x, None, 1.0, seed=1)
    torch.testing.assert_close(loss, 2 * 1000.0 - terms.reconstruction.mean())
    floor = float(max(kl)) - 1e-9  # a value between the KL of the two layers
    loss, _ = Objective(free_bits=floor).loss(model, x, None, 1.0, seed=1)
    torch.testing.assert_close(loss, max(kl) + floor - terms.reconstruction.mean())


def test_warm_up_is_linear():
    objective = Objective(warmup_epochs=200, warmup_start=0.3)
    assert objective.beta(0) == 0.3 and objective.beta(100) == pytest.approx(0.65)
    assert objective.beta(200) == objective.beta(1000) == 1.0 and Objective().beta(0) == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0},
        {"m": 0},
        {"warmup_epochs": -1},
        {"warmup_start": 2.0},
        {"free_bits": -1.0},
        {"free_bits": math.nan},
        {"free_bits": 1.0, "k": 2},
    ],
)
def test_objective_refuses(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Objective(**settings)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"latent": ()}, "hidden"),
        ({"latent": (3, 2), "hidden": ((4,),)}, "hidden"),
        ({"latent": (0,)}, "positive"),
        ({"latent": (2.5,)}, r"positive whole numbers; got .*2\.5"),
        ({"latent": 5}, "latent must be a list of sizes"),
        ({"hidden": (200, 200)}, "hidden a list of such lists"),
        ({"latent": (10**12,)}, "model vae: .*allocate"),
        ({"batch_norm": "no"}, "batch_norm must be true or false; got 'no'"),
        ({"activation": "swish"}, "activation"),
        ({"activation": ["relu"]}, "activation must be one of"),
        ({"likelihood": "poisson"}, "likelihood"),
        ({"head": "exp"}, "head"),
        ({"depth": 3}, "depth"),
    ],
)
def test_create_refuses_in_one_sentence(settings, word):
    with pytest.raises(InputError, match=word) as raised:
        models.create("vae", **settings)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="vae"):
        models.create("vea")


def test_deep_copy_and_pickle_keep_the_function():
    model, x = make(**TWO_LAYERS), binary(3, 12)
    expected = model.log_weights(x, 4, seed=0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.log_weights(x, 4, seed=0), expected)


def test_a_training_step_compiles_without_graph_breaks():
    model, x = make(**TWO_LAYERS), binary(6, 12)

    def loss(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return Objective(k=3).loss(model, x, None, 1.0, seed)[0]

    seed = torch.tensor(11)
    eager = torch.autograd.grad(loss(x, seed), list(model.parameters()))
    torch._dynamo.reset()
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, seed), list(model.parameters()))
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_log_softplus_is_exact_and_finite_far_out():
    a = torch.tensor([-1e4, -700.0, -50.5, -49.5, -20.0, -15.5, -14.5, 0.0, 15.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = log_softplus(a)
    # log(1 + e^a) is e^a − e^2a/2 + …, and its logarithm is a − e^a/2 + 5 e^2a/24 − …
    series = a - a.exp() / 2 + 5 * (2 * a).exp() / 24
    expected = torch.where(a < -10, series, torch.nn.functional.softplus(a).log())
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    slope = torch.exp(torch.nn.functional.logsigmoid(a) - expected)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), a)[0], slope)
    assert log_softplus(a.float()).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_likelihood_fits_a_gaussian(device):
    """Training with Adam on data from N(3, 0.5²) must bring the bound near the negative entropy of the data."""
    model = make(device, latent=(2,), hidden=((16,),), likelihood="gaussian")
    x = 3.0 + 0.5 * torch.randn(256, 12, generator=torch.Generator().manual_seed(0)).to(device)
    model.init_output_mean(x.mean(0))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(150):
        optimiser.zero_grad()
        Objective().loss(model, x, None, 1.0, step)[0].backward()
        optimiser.step()
    entropy = 12 * 0.5 * (math.log(2 * math.pi * 0.25) + 1.0)
    assert model.elbo(x, seed=0).bound.mean().item() == pytest.approx(-entropy, abs=1.0)


@pytest.mark.parametrize("name", ["vae", "lvae"])
def test_a_layer_between_two_latents_may_have_no_hidden_units(name):
    """A layer without hidden units must work; q and p of these latents are then linear."""
    model = models.create(name, x_dim=12, latent=(6, 4, 2), hidden=((20,), (), (7,)), batch_norm=False)
    x = binary(5, 12)
    assert model.elbo(x, seed=0).bound.isfinite().all() and model.sample(2, seed=0).shape == (2, 12)

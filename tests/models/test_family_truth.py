"""Tests of every model against its true log p(x), from numerical integration over one-dimensional latents."""

import functools
import math

import pytest
import torch
from support.family import LADDER, TINY, Y, factors, is_inference, make, widen
from torch.nn import functional as F

from dgmfast import evaluate
from dgmfast.models import Noise, SampledLabel
from dgmfast.nn import GaussianHead

PIXELS, SAMPLES = 3, 40000
STEP = 0.08
AXIS = torch.arange(-10.0, 10.0, STEP, dtype=torch.float64)
EVERY_X = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * PIXELS)

ONE, TWO = {"latent": (1,), "hidden": ((4,),)}, {"latent": (1, 1), "hidden": ((4,), (3,))}
NARROW = {"latent": 1, "auxiliary": 1, "hidden": (4,)}
# By variant: settings with one-dimensional latents, and the latents to integrate over. a integrates to 1 unless x depends on it.
SMALL = {
    "vae": (ONE, ["z1"]),
    "vae-2": (TWO, ["z1", "z2"]),
    "lvae": (TWO, ["z1", "z2"]),
    "fame": ({"image": (1, 1, 3), "latent": (1, 1), "maps": (2, 2), "dense": (4, 3)}, ["z1", "z2"]),
    "avae": ({**ONE, "auxiliary": (1,)}, ["z1"]),
    "avae-2": ({**TWO, "auxiliary": (1, 1)}, ["z1", "z2"]),
    "m2": ({"latent": 1, "hidden": (4,)}, ["z"]),
    "adgm": (NARROW, ["z"]),
    "adgm-x": (NARROW, ["z"]),
    "sdgm": (NARROW, ["z", "a"]),
    "m1m2": ({"latent": (1, 1)}, ["z1", "z2"]),
    "cagem": ({"latent": (1, 1)}, ["z1", "z2"]),
}
every_model = pytest.mark.parametrize("variant", SMALL)


@functools.cache
def small(variant):
    """Returns a model in which x depends on the latents and q is flatter and wider than p, so weights have finite variance.

    The merge makes the ladder's q narrower than its p, so its q̂ must be much wider.
    """
    model = make(variant, seed=1, scale=0.7, x_dim=PIXELS, **SMALL[variant][0])
    for name, head in model.named_modules():
        if isinstance(head, GaussianHead):
            for parameter in head.parameters():
                parameter.data *= 0.3 if is_inference(name) else 0.7
    last = model.output.first if variant == "fame" else model.output.logits
    last.weight.data *= 2.0
    return widen(model, 1.5 if variant in LADDER else 0.5).eval()


@functools.cache
@torch.no_grad()
def truth(variant):
    """Returns log p(x, y) of all 2^D values of x by the trapezoidal rule, [2^D, Y], or [2^D, 1] without a label."""
    model, names = small(variant), SMALL[variant][1]
    grid = torch.cartesian_prod(*[AXIS] * len(names)).view(1, -1, len(names))
    v = {name: grid[..., i : i + 1] for i, name in enumerate(names)}
    others = {name: torch.zeros(1, 1, 1, dtype=torch.float64) for name in ("a", "a1", "a2") if name not in v}
    log_pxy = []
    for c in range(Y if model.num_classes else 1):
        one_hot = F.one_hot(torch.tensor([[c]]), Y).double()
        p, _ = factors(model, EVERY_X[:1].unsqueeze(1), {**v, **others}, one_hot)
        log_prior = sum(p[name].log_prob(v[name]) for name in names)
        if "y" in p:
            log_prior = log_prior + p["y"].log_prob(torch.tensor(c))
        log_joint = log_prior + p["x"].log_prob(EVERY_X.unsqueeze(1))
        log_pxy.append(torch.logsumexp(log_joint, 1) + len(names) * math.log(STEP))
    return torch.stack(log_pxy, 1)


@functools.cache
def estimate(variant, sampled=False):
    return evaluate.log_likelihood(small(variant), EVERY_X, SAMPLES, seed=1, y=SampledLabel() if sampled else None)


FORMS = [(variant, False) for variant in SMALL] + [(v, True) for v in SMALL if "num_classes" in TINY[v][1]]


@every_model
def test_the_integral_is_a_distribution_over_all_x(variant):
    """The integral must sum to 1 over all x, so the grid is fine enough, and must depend on the latents and labels."""
    log_pxy = truth(variant)
    torch.testing.assert_close(log_pxy.exp().sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)
    log_px = torch.logsumexp(log_pxy, 1)
    independent = [log_px[EVERY_X[:, d] == 1].exp().sum() for d in range(PIXELS)]
    product = sum(torch.where(EVERY_X[:, d] == 1, p, 1 - p).log() for d, p in enumerate(independent))
    assert (log_px - product).abs().max() > 0.01
    if log_pxy.shape[1] > 1:
        assert (log_pxy - log_px.unsqueeze(1)).exp().std(0).max() > 0.01


@pytest.mark.parametrize(("variant", "sampled"), FORMS)
def test_log_likelihood_meets_the_integral(variant, sampled):
    result, log_px = estimate(variant, sampled), torch.logsumexp(truth(variant), 1)
    assert (result.std_error < 0.009).all() and (result.ess < 0.98 * SAMPLES).all()
    assert ((result.log_px - log_px).abs() <= 4 * result.std_error).all()
    assert ((result.log_px - log_px).abs() <= 0.02).all()


@pytest.mark.parametrize(("variant", "sampled"), FORMS)
def test_the_estimates_are_a_distribution_over_all_x(variant, sampled):
    result = estimate(variant, sampled)
    error = (result.log_px.exp() * result.std_error).square().sum().sqrt()
    assert (result.log_px.exp().sum() - 1.0).abs() < 4 * error < 0.04


@pytest.mark.parametrize("variant", [variant for variant, sampled in FORMS if sampled])
def test_log_likelihood_with_a_label_meets_the_integral(variant):
    y = torch.arange(len(EVERY_X)) % Y
    result = evaluate.log_likelihood(small(variant), EVERY_X, SAMPLES, seed=1, y=y)
    gap = (result.log_px - truth(variant)[torch.arange(len(y)), y]).abs()
    assert (gap <= 4 * result.std_error).all() and (gap <= 0.02).all()


@pytest.mark.parametrize(("variant", "sampled"), FORMS)
def test_the_bounds_grow_with_k_and_stay_below_the_integral(variant, sampled):
    log_px, means, errors = torch.logsumexp(truth(variant), 1), [], []
    with torch.no_grad():
        log_w = small(variant).log_weights(EVERY_X, SAMPLES, SampledLabel() if sampled else None, seed=2)
    for k in (1, 5, 50):
        bound = torch.logsumexp(log_w.unflatten(1, (-1, k)), 2) - math.log(k)
        means.append(bound.mean(1))
        errors.append(bound.std(1) / math.sqrt(bound.shape[1]))
    assert all((mean < log_px + 4 * error).all() for mean, error in zip(means, errors, strict=True))
    for i in (0, 1):
        assert (means[i + 1] > means[i] - 4 * (errors[i].square() + errors[i + 1].square()).sqrt()).all()
    assert (means[0] < log_px - 4 * errors[0]).any() and (log_px - means[0] > 2 * (log_px - means[2])).any()


@pytest.mark.parametrize("variant", [variant for variant, sampled in FORMS if sampled])
def test_u_is_below_the_importance_bound_and_both_below_the_integral(variant):
    """U must be below the importance bound, by KL(q(y|·) ‖ v_y/Σv) at each sample, and both must be below log p(x)."""
    model = small(variant)
    with torch.no_grad():
        terms = model.draw(model.encode(EVERY_X), EVERY_X, 4000, Noise(5))
        u, log_w = terms.bound(analytic=False), terms.log_weights()
    assert (log_w > u).all()
    log_px, error = torch.logsumexp(truth(variant), 1), u.std(1) / math.sqrt(u.shape[1])
    assert (u.mean(1) < log_px + 4 * error).all() and (u.mean(1) < log_px - 4 * error).any()


@every_model
def test_samples_have_the_integrals_means(variant):
    """The average of `sample`, which returns E[x | latents], must be the mean of p(x)."""
    mean = small(variant).sample(20000, seed=4)
    expected = torch.logsumexp(truth(variant), 1).exp() @ EVERY_X
    error = mean.std(0) / math.sqrt(len(mean))
    assert mean.shape == (20000, PIXELS) and (error > 0).all()
    assert ((mean.mean(0) - expected).abs() < 4 * error).all()

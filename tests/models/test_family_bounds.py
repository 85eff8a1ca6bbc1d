"""Tests of every model's bounds against brute force in float64."""

import math

import pytest
import torch
from support.family import (
    BATCH_NORM,
    LABELLED,
    LADDER,
    TINY,
    UNLABELLED,
    D,
    Y,
    binary,
    densities,
    labels,
    make,
    norms,
    widen,
    within,
    zero,
)
from torch.distributions import kl_divergence

from dgmfast.models import Noise, SampledLabel

HALF = D * math.log(0.5)
# The latents whose KL is analytic: under q, the parents of p's factor do not depend on the latent itself.
EXACT = {
    "vae": {"z1"},
    "vae-2": {"z2"},
    **{variant: {"z1", "z2"} for variant in LADDER},
    "avae": {"z1"},
    "avae-2": {"z2"},
    "avae-uninformed": {"z2", "a1", "a2"},
    "m2": {"z"},
    "adgm": {"z"},
    "adgm-x": {"z"},
    "adgm-deterministic": {"z"},
    "sdgm": {"z"},
    "m1m2": {"z2"},
    "cagem": {"z2"},
}
BETAS = [1.0, 0.3]
with_labels, without_labels = (pytest.mark.parametrize("variant", group) for group in (LABELLED, UNLABELLED))
every_model = pytest.mark.parametrize("variant", TINY)


def label_of(variant, rows):
    return labels(rows) if variant in LABELLED else None


def draw(model, x, k=4, y=None, seed=3):
    return model.draw(model.encode(x, y), x, k, Noise(seed), y)


@pytest.mark.parametrize(
    ("variant", "norm"), [(v, norm) for norm, group in ((False, TINY), (True, BATCH_NORM)) for v in group if v not in LADDER]
)
@pytest.mark.parametrize("training", [True, False])
def test_where_every_q_equals_its_p_every_weight_is_half_to_the_power_of_d(variant, norm, training):
    model, x = zero(make(variant, batch_norm=norm)).train(training), binary(5)
    assert bool(norms(model)) == norm
    expected = torch.full((5, 9), HALF, dtype=torch.float64)
    torch.testing.assert_close(model.log_weights(x, 9), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.elbo(x, k=3).bound, expected[:, 0], rtol=0, atol=1e-12)
    if variant in LABELLED:
        with torch.no_grad():
            torch.testing.assert_close(model.log_weights(x, 9, SampledLabel()), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.log_weights(x, 9, labels(5)), expected - math.log(Y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["log_var", "softplus"])
def test_a_ladder_of_unit_variances_pays_for_its_halved_variance(head):
    """With unit variances, q of a lower layer has variance ½, so log p(z) − log q(z) must be Σ_d (−½ log 2 + ε²/4)."""
    model, x = zero(make("lvae", latent=(4, 3, 2), hidden=((5,), (4,), (3,)), head=head)), binary(5)
    for name, parameter in model.named_parameters():
        if head == "softplus" and name.endswith("scale.bias"):
            torch.nn.init.constant_(parameter, math.log(math.expm1(1.0)))
    terms, expected, count = draw(model, x, 500), HALF, 0
    for name in ("z1", "z2"):
        noise = terms.latents[name].z * math.sqrt(2.0)
        expected = expected + (-0.5 * math.log(2.0) + noise.square() / 4).sum(-1)
        count += noise.shape[-1]
        assert within(noise.flatten(), 0).all() and within(noise.flatten().square() - 1.0, 0).all()
    assert count == 4 + 3
    torch.testing.assert_close(terms.log_weights(), expected, rtol=0, atol=1e-12)


def reference(model, x, terms, y):
    """Returns log p and log q of every variable of a draw with labels y, and each latent's KL(q ‖ p), [B, k]."""
    v = {name: latent.z for name, latent in terms.latents.items()}
    log_p, log_q, p, q = densities(model, x, v, y)
    kl = {name: kl_divergence(q[name], p[name]) for name in v}
    return log_p, log_q, {name: value.expand(log_p["x"].shape) for name, value in kl.items()}


def enumerated(model, x, terms, variant):
    """Returns log p(x|·), the latents' log-ratio of densities and KL, log p(y) and log q(y) by label, [B, k, Y]."""
    columns = []
    for c in range(Y):
        v = {n: t.z.expand(*t.z.shape[:2], Y, -1)[:, :, c] for n, t in terms.latents.items()}
        log_p, log_q, p, q = densities(model, x, v, torch.full((len(x),), c))
        kl = sum(kl_divergence(q[n], p[n]) if n in EXACT[variant] else log_q[n] - log_p[n] for n in v)
        ratio = sum(log_p[n] - log_q[n] for n in v)
        columns.append([t.expand(log_p["x"].shape) for t in (log_p["x"], ratio, kl, log_p["y"], log_q["y"])])
    return (torch.stack(column, -1) for column in zip(*columns, strict=True))


@with_labels
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("norm", [False, True])
def test_the_bound_over_labels_is_the_enumeration(variant, beta, norm):
    """It must be U = E_a Σ_y q(y|a,x) [log p(x|·) − β (KL + log q(y|·) − log p(y|·))], and log w = log Σ_y q(y|·) w_y^β."""
    model, x = make(variant, batch_norm=norm).eval(), binary(5)
    terms = draw(model, x)
    log_px, ratio, kl, log_py, log_qy = enumerated(model, x, terms, variant)
    q = log_qy.exp()
    torch.testing.assert_close(terms.bound(beta), (q * (log_px - beta * (kl + log_qy - log_py))).sum(-1))
    sampled = (q * (log_px + beta * (ratio + log_py - log_qy))).sum(-1)
    torch.testing.assert_close(terms.bound(beta, analytic=False), sampled)
    log_w = torch.logsumexp(log_qy + log_px + beta * (ratio + log_py - log_qy), -1)
    torch.testing.assert_close(terms.log_weights(beta), log_w)
    torch.testing.assert_close(terms.per_label(), log_px - kl + log_py)
    torch.testing.assert_close(terms.reconstruction(), (q * log_px).sum(-1))
    torch.testing.assert_close(terms.kl_terms()["y"], (q * (log_qy - log_py)).sum(-1))
    if beta == 1.0:
        assert (log_w > sampled).all()  # at K = 1 the difference is E KL(q(y|·) ‖ v_y/Σv)


@with_labels
@pytest.mark.parametrize("beta", BETAS)
def test_a_sampled_label_is_one_of_the_enumeration_and_pays_its_probability(variant, beta):
    model, x = make(variant), binary(5)
    with torch.no_grad():
        terms = draw(model, x, 6, SampledLabel())
        for j in range(6):
            one = {n: t.z[:, j : j + 1] for n, t in terms.latents.items()}
            log_p, log_q, _, _ = densities(model, x, one, terms.labels.y[:, j])
            prior = sum(log_p[n] - log_q[n] for n in (*one, "y"))
            torch.testing.assert_close(terms.log_weights(beta)[:, j : j + 1], log_p["x"] + beta * prior)
    assert terms.labels.y.unique().tolist() == [0, 1, 2]


@every_model
@pytest.mark.parametrize("beta", BETAS)
def test_the_supervised_and_the_plain_bound_are_the_sums_of_their_terms(variant, beta):
    """Both bounds must be the sums of their terms (eqs 3.30 and 4.9), with log p(y) weighted by β like a latent's KL."""
    model, x, y = make(variant), binary(5), label_of(variant, 5)
    terms = draw(model, x, 4, y)
    log_p, log_q, kl = reference(model, x, terms, labels(5))
    log_py = log_p["y"].expand(5, 4) if variant in LABELLED else torch.zeros(5, 4, dtype=torch.float64)
    ratio = {n: log_p[n] - log_q[n] for n in terms.latents}
    cost = {n: kl[n] if n in EXACT[variant] else -ratio[n] for n in terms.latents}
    torch.testing.assert_close(terms.bound(beta), log_p["x"] - beta * (sum(cost.values()) - log_py))
    torch.testing.assert_close(terms.bound(beta, analytic=False), log_p["x"] + beta * (sum(ratio.values()) + log_py))
    torch.testing.assert_close(terms.log_weights(beta), log_p["x"] + beta * (sum(ratio.values()) + log_py))
    elbo = model.elbo(x, y, beta, k=4, seed=3)
    torch.testing.assert_close(elbo.bound, terms.bound(beta).mean(1))
    torch.testing.assert_close(elbo.reconstruction, log_p["x"].mean(1))
    for name, value in cost.items():
        torch.testing.assert_close(elbo.kl[name], value.mean(1))
    if variant in LABELLED:
        torch.testing.assert_close(elbo.kl["y"], -log_py.mean(1))
    torch.testing.assert_close(elbo.bound, elbo.reconstruction - beta * sum(elbo.kl.values()))


@every_model
def test_a_kl_is_analytic_only_where_it_is_the_latents_term(variant):
    """An analytic KL must be used exactly where it agrees with Monte Carlo; at drawn parents it may have another mean."""
    model, x, y = make(variant), binary(4), label_of(variant, 4)
    with torch.no_grad():
        terms = draw(model, x, 20000, y)
        analytic = reference(model, x, terms, labels(4))[2]
    assert {name for name, latent in terms.latents.items() if latent.exact} == EXACT[variant]
    for name, latent in terms.latents.items():
        sampled = latent.log_q - latent.log_p()
        agrees = within(analytic[name] - sampled, 1)
        assert agrees.all() if latent.exact else not agrees.all(), name
        torch.testing.assert_close(latent.kl(analytic=False), sampled)
        torch.testing.assert_close(latent.kl().expand_as(sampled), analytic[name] if latent.exact else sampled)
        torch.testing.assert_close(latent.kl_units().sum(-1).expand_as(sampled), latent.kl().expand_as(sampled))


@with_labels
def test_enumerated_and_sampled_labels_give_weights_of_one_mean_and_ordered_bounds(variant):
    """Summed and sampled labels must give the same E w; L_K of the sum must be at least as high, and both must grow with K."""
    model, x, draws = widen(make(variant, scale=0.4), 1.0), binary(3), 40000
    with torch.no_grad():
        log_w = [model.log_weights(x, draws, y, seed=seed) for seed, y in enumerate((None, SampledLabel()))]
    over, sampled = (value.exp() / log_w[0].exp().mean(1, keepdim=True) for value in log_w)
    assert within(over - sampled, 1).all() and within(over - 1.1 * sampled, 1).logical_not().any()
    assert (sampled.std(1) > over.std(1)).all()
    means, variances = [], []  # of the two kinds of weights, each [3 values of K, rows]
    for value in log_w:
        bounds = [torch.logsumexp(value.unflatten(1, (-1, k)), 2) - math.log(k) for k in (1, 5, 50)]
        means.append(torch.stack([bound.mean(1) for bound in bounds]))
        variances.append(torch.stack([bound.var(1) / bound.shape[1] for bound in bounds]))
    mean, variance = torch.stack(means), torch.stack(variances)
    assert (mean.diff(dim=1) > -4 * (variance[:, 1:] + variance[:, :-1]).sqrt()).all()
    assert (mean[:, 2] > mean[:, 0] + 4 * (variance[:, 2] + variance[:, 0]).sqrt()).all()
    assert (mean[0] > mean[1] - 4 * variance.sum(0).sqrt()).all()
    assert (mean[0, 0] > mean[1, 0] + 4 * variance[:, 0].sum(0).sqrt()).any()


def test_the_class_prior_stays_in_the_bound():
    """A given p(y) must shift the supervised bound by its logarithm relative to a uniform one (eq. 4.9), and do no more."""
    prior, x, y = (0.5, 0.3, 0.2), binary(6), labels(6)
    for variant in ("m2", "adgm", "sdgm", "m1m2"):
        uniform, given = make(variant, class_prior="uniform"), make(variant, class_prior=prior)
        shift = torch.tensor(prior, dtype=torch.float64).mul(Y).log()[y]
        torch.testing.assert_close(given.elbo(x, y, seed=0).bound - uniform.elbo(x, y, seed=0).bound, shift, rtol=0, atol=1e-6)

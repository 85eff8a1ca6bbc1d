"""Tests of every model on the protocol: shapes, chunks, noise, classifiers, class priors and refused inputs."""

import math

import pytest
import torch
from support.family import LABELLED, TINY, UNLABELLED, D, Y, binary, densities, factors, labels, make, zero
from torch.nn import functional as F

from dgmfast import evaluate, models
from dgmfast.errors import InputError
from dgmfast.models import CaGeM, GumbelSoftmax, Noise, SampledLabel, SparseSum

every_model = pytest.mark.parametrize("variant", TINY)
with_labels = pytest.mark.parametrize("variant", LABELLED)
HOW = {"sum": lambda rows: None, "sampled": lambda rows: SampledLabel(), "observed": labels}
FORMS = [(variant, "sum") for variant in TINY] + [(variant, how) for variant in LABELLED for how in ("sampled", "observed")]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def sizes(model):
    """Returns the sizes of the latents by name."""
    x = binary(2)
    return {name: latent.q[0].shape[-1] for name, latent in model.draw(model.encode(x), x, 1, Noise(0)).latents.items()}


@pytest.mark.parametrize(("variant", "how"), FORMS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("k", [1, 3])
def test_shapes(variant, how, rows, k):
    model, x, y = make(variant), binary(rows), HOW[how](rows)
    assert model.log_weights(x, k, y).shape == (rows, k)
    elbo = model.elbo(x, y, k=k)
    assert elbo.bound.shape == elbo.reconstruction.shape == (rows,)
    assert {name: value.shape for name, value in elbo.kl.items()} == dict.fromkeys(
        [*sizes(model), *(["y"] if variant in LABELLED else [])], (rows,)
    )
    observed = y if how == "observed" else None
    for mean in (model.reconstruct(x, observed), model.sample(rows, observed)):
        inside = (mean > 0) & (mean < 1)
        # FAME draws pixels; the other models return means.
        assert mean.shape == (rows, D) and (inside | (variant == "fame") & ((mean == 0) | (mean == 1))).all()
    means = model.latent_means(x, observed)
    assert {name: value.shape for name, value in means.items()} == {name: (rows, size) for name, size in sizes(model).items()}
    result = evaluate.log_likelihood(model, x, k, y=y)
    torch.testing.assert_close(
        result.log_px, torch.logsumexp(model.log_weights(x, k, y, seed=0), 1) - math.log(k), rtol=0, atol=1e-9
    )


@with_labels
@pytest.mark.parametrize("k", [1, 3])
def test_class_probabilities_are_distributions(variant, k):
    model = make(variant)
    for rows in (1, 4):
        for by in ("q", "p", "both", *(["cascade"] if variant == "cagem" else [])):
            probabilities = model.classify(binary(rows), k, by=by)
            assert probabilities.shape == (rows, Y)
            torch.testing.assert_close(probabilities.sum(1), torch.ones(rows, dtype=torch.float64))


@every_model
def test_reconstructions_and_latent_means_are_those_of_one_draw(variant):
    model, x = make(variant), binary(5)
    y = labels(5) if variant in LABELLED else None
    drawn = model.draw(model.encode(x, y), x, 1, Noise(7), y)
    v = {name: latent.z for name, latent in drawn.latents.items()}
    _, _, p, q = densities(model, x, v, labels(5))
    torch.testing.assert_close(model.reconstruct(x, y, seed=7), p["x"].mean.squeeze(1))
    for name, mean in model.latent_means(x, y, seed=7).items():
        torch.testing.assert_close(mean, q[name].mean.squeeze(1))
    assert not torch.equal(model.reconstruct(x, y, seed=7), model.reconstruct(x, y, seed=8)) or "deterministic" in variant


@pytest.mark.parametrize(("variant", "how"), FORMS)
def test_a_part_draws_the_noise_of_the_whole(variant, how):
    model, x, y = make(variant), binary(9), HOW[how](9)
    whole = model.log_weights(x, 8, y, seed=5)
    part = y[4:] if how == "observed" else y
    samples = model.log_weights(x, 5, y, seed=5, first_sample=3)
    torch.testing.assert_close(samples, whole[:, 3:], rtol=0, atol=1e-12)
    rows = model.log_weights(x[4:], 3, part, seed=5, first_row=4, first_sample=2)
    torch.testing.assert_close(rows, whole[4:, 2:5], rtol=0, atol=1e-12)
    assert not torch.isclose(model.log_weights(x, 8, y, seed=6), whole).any()


@with_labels
def test_a_part_is_classified_as_in_the_whole(variant):
    model, x = make(variant), binary(9)
    for by in ("q", "p", "both", *(["cascade"] if variant == "cagem" else [])):
        whole = model.classify(x, 3, 5, by)
        torch.testing.assert_close(model.classify(x[4:], 3, 5, by, first_row=4), whole[4:], rtol=0, atol=1e-12)


class OneStream(Noise):
    """Draws everything from one stream, which must not happen in a model."""

    def gaussian(self, q, k, stream):
        return super().gaussian(q, k, 0)


def assert_own_streams(monkeypatch, call, noise, count):
    """Asserts that call(noise) draws `count` times, each time from another stream."""
    streams, gaussian = [], Noise.gaussian

    def record(self, q, k, stream):
        streams.append(stream)
        return gaussian(self, q, k, stream)

    with monkeypatch.context() as patch:
        patch.setattr(Noise, "gaussian", record)
        call(noise)
    assert len(streams) == count and len(set(streams)) == count, streams


LABEL_FORMS = [None, SampledLabel(), SparseSum(), GumbelSoftmax()]


@pytest.mark.parametrize(
    ("variant", "label"),
    [(v, None) for v in TINY] + [(v, s) for v in LABELLED for s in LABEL_FORMS[1:] if v != "cagem" or s == SampledLabel()],
)
def test_no_two_latents_share_a_stream_of_noise(variant, label, monkeypatch):
    model, x = make(variant), binary(3)
    count = len(sizes(model)) + (label is not None)

    def call(noise):
        model.draw(model.encode(x), x, 2, noise, label)

    assert_own_streams(monkeypatch, call, Noise(1), count)
    if count > 1:
        with pytest.raises(AssertionError):  # the check must notice two layers that share a stream
            assert_own_streams(monkeypatch, call, OneStream(1), count)


@every_model
def test_no_two_latents_of_a_sample_share_a_stream_of_noise(variant, monkeypatch):
    """Draws from the prior must use one stream each for z, for the label, and for a if x depends on it."""
    model = make(variant)
    drawn = set(sizes(model)) - ({"a", "a1", "a2"} if variant != "sdgm" else set())
    count = len(drawn) + (variant in LABELLED)
    assert_own_streams(monkeypatch, lambda noise: model.prior(3, noise), Noise(1), count)
    if count > 1:
        with pytest.raises(AssertionError):
            assert_own_streams(monkeypatch, lambda noise: model.prior(3, noise), OneStream(1), count)


def largest_correlation(model, x, noise):
    latents = model.draw(model.encode(x), x, 300, noise).latents.values()
    first, second = (latent.z[:, :, 0].flatten(1)[:, :300] if latent.z.dim() == 4 else latent.z[:, :, 0] for latent in latents)
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs()


@pytest.mark.parametrize("variant", ["vae-2", "lvae", "fame", "avae", "adgm", "sdgm", "m1m2", "cagem"])
def test_two_latents_of_one_distribution_are_uncorrelated(variant):
    """With all weights zero, equal noise would make two latents equal, so their draws must be uncorrelated."""
    equal = {"vae-2": {"latent": (2, 2)}, "avae": {"auxiliary": (3,)}, "adgm": {"latent": 2}, "sdgm": {"latent": 2}}
    model = zero(make(variant, **equal.get(variant, {"latent": (2, 2)})))
    x, count = binary(50), 50 * 300
    for name, latent in model.draw(model.encode(x), x, 2, Noise(0)).latents.items():
        assert not latent.q[0].any(), name
    assert largest_correlation(model, x, Noise(0)) < 5 / math.sqrt(count)


@with_labels
def test_classify_by_q_by_p_and_by_both_as_defined(variant):
    """They must be E_q(a|x) q(y|a, x), softmax over y of the mean L(x, y), and the normalised geometric mean of both."""
    model, x, k = make(variant), binary(5), 4
    terms = model.draw(model.encode(x), x, k, Noise(3))
    bounds, log_q = [], []
    for c in range(Y):
        v = {name: latent.z.expand(5, k, Y, -1)[:, :, c] for name, latent in terms.latents.items()}
        log_p, log_qs, p, q = densities(model, x, v, torch.full((5,), c))
        kl = (torch.distributions.kl_divergence(q[n], p[n]) if n in ("z", "z2") else log_qs[n] - log_p[n] for n in v)
        bounds.append((log_p["x"] + log_p["y"] - sum(kl)).mean(1))
        log_q.append(log_qs["y"].expand(5, k))
    by_q, by_p = torch.stack(log_q, -1).exp().mean(1), torch.softmax(torch.stack(bounds, -1), -1)
    both = (by_q * by_p).sqrt()
    for by, expected in {"q": by_q, "p": by_p, "both": both / both.sum(1, keepdim=True)}.items():
        torch.testing.assert_close(model.classify(x, k, 3, by), expected)
        torch.testing.assert_close(evaluate.class_probabilities(model, x, k, 3, by), expected)
    assert (by_q.argmax(1) != by_p.argmax(1)).any() or (by_q - by_p).abs().max() > 0.01
    wrong = 100.0 * (by_q.argmax(1) != labels(5)).double().mean().item()
    assert evaluate.classification_error(model, x, labels(5), k, 3, "q") == pytest.approx(wrong)


def test_cagem_classifies_by_the_cascade():
    """CaGeM must classify by default with p(y|x) = E_q(z1|x) Σ_ỹ q(ỹ|z₁, x) E p(y|z₂), z₂ ~ q(z₂|x, ỹ, z₁) (eq. 4.32)."""
    model, x, k = make("cagem"), binary(5), 4
    latents = model.draw(model.encode(x), x, k, Noise(3)).latents
    expected = torch.zeros(5, k, Y, dtype=torch.float64)
    for c in range(Y):
        v = {name: latent.z.expand(5, k, Y, -1)[:, :, c] for name, latent in latents.items()}
        p, q = factors(model, x.unsqueeze(1), v, F.one_hot(torch.full((5, 1), c), Y).double())
        expected += q["y"].probs[..., c : c + 1] * p["y"].probs
    torch.testing.assert_close(model.classify(x, k, 3), expected.mean(1))
    torch.testing.assert_close(evaluate.class_probabilities(model, x, k, 3), expected.mean(1))


@with_labels
def test_classify_refuses(variant):
    model, x = make(variant), binary(3)
    with pytest.raises(InputError, match="classify: by must be q, p or both; got 'r'"):
        model.classify(x, by="r")
    with pytest.raises(InputError, match="classify: k must be at least 1; got 0"):
        model.classify(x, k=0)
    with pytest.raises(InputError, match=r"classify: x must be floating, of shape \[N, 6\]"):
        model.classify(x[:, :5])


PRIORS = [("uniform", [1 / 3] * 3), ((0.5, 0.3, 0.2), [0.5, 0.3, 0.2]), ([1, 1, 2], [0.25, 0.25, 0.5])]
WITH_PRIOR = [variant for variant in LABELLED if variant != "cagem"]


@pytest.mark.parametrize("variant", WITH_PRIOR)
def test_the_class_prior_is_uniform_given_or_learned(variant):
    for given, expected in PRIORS:
        model = make(variant, class_prior=given)
        torch.testing.assert_close(model.log_py().exp(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)
        assert "prior_logits" in model.state_dict() and "prior_logits" not in dict(model.named_parameters())
    name, settings = TINY[variant]
    learned = models.create(name, x_dim=D, **settings)
    torch.testing.assert_close(learned.log_py().exp(), torch.full((Y,), 1 / 3))
    with torch.enable_grad():
        (-learned.elbo(binary(6).float(), labels(6)).bound.mean()).backward()
    assert learned.prior_logits.grad.isfinite().all()


def test_samples_draw_their_labels_from_the_class_prior():
    """`sample` must draw labels from p(y); each label has its own image, so x shows which one was drawn."""
    model = zero(make("m2", class_prior=(0.6, 0.3, 0.1)))
    model.p_x.label_weight.copy_(torch.eye(5, Y))
    model.p_x.rest[0].weight.copy_(torch.eye(4, 5))
    model.output.logits.weight.copy_(torch.eye(D, 4))
    drawn = (model.sample(20000, seed=3)[:, :Y] > 0.5).double()
    assert (drawn.sum(1) == 1).all()
    probabilities = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert ((drawn.mean(0) - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / 20000).sqrt()).all()


@pytest.mark.parametrize("prior", ["flat", (0.5, 0.5), (0.5, 0.5, 0.0), (1.0, 1.0, -1.0), (1.0, math.inf, 1.0), (math.nan,) * 3])
def test_class_priors_that_are_refused(prior):
    for variant in WITH_PRIOR:
        with pytest.raises(InputError, match="class_prior must"):
            make(variant, class_prior=prior)


def test_a_class_prior_of_text_is_refused():
    with pytest.raises(InputError, match="class_prior must"):
        make("m2", class_prior=("a", "b", "c"))


CALLS = {
    "log_weights": lambda model, x, y: model.log_weights(x, 2, y),
    "elbo": lambda model, x, y: model.elbo(x, y),
    "reconstruct": lambda model, x, y: model.reconstruct(x, y),
    "latent_means": lambda model, x, y: model.latent_means(x, y),
    "sample": lambda model, x, y: model.sample(3, y),
    "log_likelihood": lambda model, x, y: evaluate.log_likelihood(model, x, 2, y=y),
}


@with_labels
@pytest.mark.parametrize("call", CALLS)
def test_labels_that_are_refused(variant, call):
    model, x = make(variant), binary(3)
    for y, told in [
        ([0, 3, 1], r"y must lie in 0\.\.2; got 3 in row 1"),
        ([0, 1, -1], r"y must lie in 0\.\.2; got -1 in row 2"),
        ([0, 1], r"y must be int64 \[3\] on cpu; got torch.int64 \[2\]"),
        ([0.0, 1.0, 1.0], r"y must be int64 \[3\] on cpu; got torch.float32 \[3\]"),
        ([[0], [1], [1]], r"y must be int64 \[3\] on cpu; got torch.int64 \[3, 1\]"),
    ]:
        with pytest.raises(InputError, match=f"^{call}: {told}"):
            CALLS[call](model, x, torch.tensor(y))
    with pytest.raises(InputError, match=f"^{call}: y must be labels or a LabelEstimator; got 'exact'"):
        CALLS[call](model, x, "exact")


@pytest.mark.parametrize("variant", UNLABELLED)
@pytest.mark.parametrize("call", CALLS)
def test_models_without_a_label_take_none(variant, call):
    for y in (torch.zeros(3, dtype=torch.int64), SampledLabel()):
        with pytest.raises(InputError, match=f"^{call}: y must be None, because (FAME|[LA]?VAE) takes no labels"):
            CALLS[call](make(variant), binary(3), y)


@pytest.mark.parametrize(
    ("variant", "settings", "told"),
    [
        ("sdgm", {"deterministic": True}, "model sdgm: .*deterministic"),
        ("adgm", {"deterministic": "yes"}, "deterministic must be true or false"),
        ("adgm", {"auxiliary_sees_x": 1}, "auxiliary_sees_x must be true or false"),
        ("avae", {"uninformed": "no"}, "uninformed must be true or false"),
        ("avae", {"auxiliary": (1, 2)}, "hidden must give one MLP per latent layer"),
        ("cagem", {"latent": (2,)}, "latent must name the sizes of z1 and z2"),
        ("m1m2", {"latent": (2, 2, 2)}, "latent must name two sizes"),
        ("m1m2", {"pretrain_epochs": -1}, "pretrain_epochs be a whole number of at least 0"),
        *[(variant, {"num_classes": 1}, "num_classes must be a whole number of at least 2") for variant in LABELLED],
        *[(variant, {"num_classes": 2.0}, "num_classes must be a whole number") for variant in LABELLED],
        *[(variant, {"activation": "swish"}, "activation must be one of") for variant in TINY],
        *[(variant, {"likelihood": "poisson"}, "likelihood must be one of") for variant in TINY],
        *[(variant, {"head": "exp"}, "head must be one of") for variant in TINY],
        ("m2", {"hidden": ()}, "hidden must be a positive whole number, or a list"),
    ],
)
def test_settings_that_are_refused(variant, settings, told):
    with pytest.raises(InputError, match=told):
        make(variant, **settings)


def test_a_deterministic_a_has_no_terms_and_no_noise():
    model, x = make("adgm-deterministic"), binary(4)
    terms = model.draw(model.encode(x), x, 3, Noise(0))
    assert set(terms.latents) == {"z"} and model.p_a is None
    assert torch.equal(terms.labels.log_qy[:, 0], terms.labels.log_qy[:, 2])
    assert torch.equal(model.classify(x, 1, seed=0), model.classify(x, 1, seed=1))
    assert not torch.equal(model.log_weights(x, seed=0), model.log_weights(x, seed=1))


def test_cagem_draws_at_a_given_z2_and_label():
    """CaGeM must decode at a given z₂ with a given y or, without one, with y drawn from p(y|z₂), as the latent grid needs."""
    model, z2 = make("cagem"), torch.linspace(-2, 2, 8, dtype=torch.float64).view(4, 1, 2)
    assert isinstance(model, CaGeM)
    shared = model.decode_z2(z2[:1].expand(5000, 1, 2), Noise(2))
    by_label = [model.decode_z2(z2[:1].expand(5000, 1, 2), Noise(3), torch.full((5000,), c)).mean(0) for c in range(Y)]
    expected = model.p_y(z2[0]).exp()[0] @ torch.stack(by_label)
    assert ((shared.mean(0) - expected).abs() < 4 * shared.std(0) * math.sqrt(2 / 5000)).all()
    assert (torch.stack(by_label).std(0) > 0.01).any()

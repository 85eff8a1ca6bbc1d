"""Tests of the models' gradients: finite differences, which parameters they reach, and the estimates of the label sum."""

import math

import pytest
import torch
from support.family import BATCH_NORM, LABELLED, TINY, Y, binary, difference_quotients, labels, make, norms, within, zero

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models import ExactSum, GumbelSoftmax, Noise, SampledLabel, SparseSum
from dgmfast.nn import frozen_statistics
from dgmfast.objectives import Labelled, Objective

NARROW = {
    **{name: {"latent": (2, 1), "hidden": ((3,), (2,))} for name in ("vae-2", "lvae", "avae-uninformed")},
    "vae": {"latent": (2,), "hidden": ((3,),)},
    "avae": {"latent": (2,), "hidden": ((3,),), "auxiliary": (1,)},
    "avae-2": {"latent": (2, 1), "hidden": ((3,), (2,)), "auxiliary": (1, 2)},
    "m2": {"latent": 2, "hidden": (3, 2)},
    **{name: {"latent": 2, "auxiliary": 1, "hidden": (3,)} for name in ("adgm", "adgm-x", "adgm-deterministic", "sdgm")},
    **{
        name: {"image": (1, 2, 2), "latent": (2, 1), "maps": (1, 2), "dense": (3, 2), "decoder_maps": 5}
        for name in ("fame", "fame-noconcat")
    },
    "m1m2": {"latent": (2, 1), "hidden1": (3,), "hidden2": (2,)},
    "cagem": {"latent": (2, 1), "hidden1": (3,), "hidden2": (3,)},
}
SUMS = [SparseSum(0.5), SparseSum(2.0), SparseSum(0.1)]
ESTIMATED = [variant for variant in LABELLED if variant != "cagem"]  # with p(y|z2), only the exact sum is allowed


def narrow(variant, **settings):
    return make(variant, x_dim=4, **{**NARROW[variant], **settings})


def unused(variant):
    """Returns the parameters without effect: a deterministic a is the mean of q(a|x), so its scale is unused."""
    return ("q_a.gaussian.scale.weight", "q_a.gaussian.scale.bias") if variant == "adgm-deterministic" else ()


def assert_gradients(value, model, without=(), some=lambda name: True):
    """Asserts that gradients of the parameters in `some` equal finite differences, and that only those in `without` are zero."""
    named = {name: p for name, p in model.named_parameters() if some(name)}
    model.zero_grad()
    value().backward()
    for (name, p), expected in zip(named.items(), difference_quotients(value, list(named.values())), strict=True):
        got = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
        assert (expected.abs().max() > 1e-6) == (name not in without), name


@pytest.mark.parametrize("variant", TINY)
def test_gradient_of_the_bound(variant):
    """The gradient of U, or of the ELBO, at k = 1 and fixed noise must equal finite differences."""
    model, x = narrow(variant), binary(3, 4)
    assert_gradients(lambda: Objective().loss(model, x, None, 1.0, seed=2)[0], model, unused(variant))


@pytest.mark.parametrize("variant", ["lvae", "fame", "avae-2", "sdgm", "cagem"])
def test_gradient_of_the_importance_bound_in_warm_up(variant):
    model, x = narrow(variant), binary(3, 4)
    assert_gradients(lambda: Objective(k=3, m=2).loss(model, x, None, 0.4, seed=2)[0], model)


@pytest.mark.parametrize("variant", ["m2", "adgm-x", "m1m2"])
def test_gradient_of_the_semi_supervised_loss(variant):
    """The gradient must equal finite differences; CaGeM's need not, because its cross-entropies take z₁ and z₂ as constants."""
    model, x, y = narrow(variant), binary(4, 4), labels(2)
    labelled, objective = Labelled(x[:2], y, 0.7, 2), Objective(alpha=0.7, free_bits=0.01)
    assert_gradients(lambda: objective.loss(model, x[2:], None, 0.8, 2, labelled=labelled)[0], model)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("entropy", ["q_y", "p_y"])
def test_cagems_cross_entropies_reach_only_the_classifiers(entropy, norm):
    """In eq. 4.33, q(y|z₁, x) must reach only φ_y, and p(y|x) only φ_y and θ_y (p(y|z₂)), as App. C trains the cascade."""
    model, x, y = narrow("cagem", batch_norm=norm), binary(5, 4), labels(5)
    reached = ("q_y.",) if entropy == "q_y" else ("q_y.", "p_y.")

    def value():
        with frozen_statistics(model):
            return model.supervise(model.encode(x, y), x, 3, Noise(4), y)[1][entropy].mean()

    # Batch norm removes a bias that is added before it.
    constant = [f"{prefix}mlp.bias" for prefix in reached] if norm else ()
    assert_gradients(value, model, constant, lambda name: name.startswith(reached))
    for name, p in model.named_parameters():
        if not name.startswith(reached):
            assert p.grad is None or not p.grad.any(), name
    assert not model.supervise(model.encode(x, y), x, 3, Noise(4), y)[0]


def test_cagems_labelled_rows_have_no_bound():
    """Labelled rows must add only α Σ_l [CE(y_l, p(y|x_l)) + CE(y_l, q(y|x_l))] (eq. 4.33), which reaches only classifiers."""
    model, x, y = narrow("cagem"), binary(7, 4), labels(3)
    gradients = []
    for labelled in (None, Labelled(x[:3], y, 2.0, 4)):
        model.zero_grad()
        Objective().loss(model, x[3:], None, 1.0, 1, labelled=labelled)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, alone in gradients[0].items():
        assert torch.equal(alone, gradients[1][name]) != name.startswith(("q_y.", "p_y.")), name


@pytest.mark.parametrize("variant", [variant for variant in BATCH_NORM if variant in LABELLED])
def test_the_labelled_pass_leaves_the_batch_statistics_alone(variant):
    model, x = make(variant, batch_norm=True), binary(9)
    objective, labelled = Objective(), Labelled(binary(6), labels(6), 0.7, 9)

    def statistics():
        return [t.clone() for layer in norms(model) for t in (layer.running_mean, layer.running_var)]

    before = statistics()
    objective._supervised(model, labelled, 1.0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(), strict=True))
    momenta = [layer.momentum for layer in norms(model)]
    objective.loss(model, x, None, 1.0, 1)
    alone = statistics()
    assert not any(torch.equal(a, b) for a, b in zip(before, alone, strict=True)) and all(momenta)
    other = make(variant, batch_norm=True)
    objective.loss(other, x, None, 1.0, 1, labelled=labelled)
    both = [t for layer in norms(other) for t in (layer.running_mean, layer.running_var)]
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


def test_the_labelled_pass_normalises_by_its_own_batch():
    """In training, the labelled pass must normalise by its own batch and not by the running statistics."""
    model, labelled = make("cagem", batch_norm=True), Labelled(binary(6), labels(6), 0.7, 9)
    before = Objective()._supervised(model, labelled, 1.0, 1)[0]
    for layer in norms(model):
        layer.running_mean += 1.0
    torch.testing.assert_close(Objective()._supervised(model, labelled, 1.0, 1)[0], before, rtol=0, atol=0)
    assert Objective()._supervised(model.eval(), labelled, 1.0, 1)[0] != before


def log_probabilities(rows, k, classes, seed=0):
    logits = 1.5 * torch.randn(rows, 1, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(logits, -1).expand(rows, k, classes)


@pytest.mark.parametrize("label_sum", SUMS)
@pytest.mark.parametrize("classes", [3, 40])
def test_a_sparse_sum_keeps_the_best_label_and_few_others(label_sum, classes):
    log_q = log_probabilities(3, 4000, classes)
    kept = label_sum.bind(log_q, 4000, Noise(1), 0)
    best = log_q.argmax(-1).flatten()
    pairs = torch.zeros(12000, classes, dtype=torch.bool)
    pairs[kept.sample, kept.y] = True
    assert pairs.sum() == len(kept.y) and pairs[torch.arange(12000), best].all()
    assert len(kept.y) / 12000 <= 1.0 + 1.0 / label_sum.tau
    # Every other label is kept with probability min(1, q/τ).
    expected = (log_q[:, 0].exp() / label_sum.tau).clamp(max=1.0)
    expected[torch.arange(3), best.view(3, -1)[:, 0]] = 1.0
    frequency = pairs.view(3, 4000, classes).double().mean(1)
    assert ((frequency - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-12).all()
    weights = torch.zeros(12000, dtype=torch.float64).index_add(0, kept.sample, kept.weight)
    torch.testing.assert_close(weights, torch.ones_like(weights))


@pytest.mark.parametrize("label_sum", SUMS)
def test_a_sparse_sum_of_given_values_is_unbiased_in_value_and_gradient(label_sum):
    """Σ_kept weight · f(y), and its gradients in log q and f, must have the mean of Σ_y q_y f(y) and of its gradients."""
    draws, classes = 20000, 6
    log_q = log_probabilities(2, draws, classes).contiguous().requires_grad_()
    f = torch.randn(2, 1, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = f.expand(2, draws, classes).contiguous().requires_grad_()
    kept = label_sum.bind(log_q, draws, Noise(1), 0)
    value = kept.mean(f.view(-1, classes)[kept.sample, kept.y])
    exact = (log_q.exp() * f).sum(-1)
    assert value.shape == (2, draws) and within(value - exact, 1, 5).all() and (value.std(1) > 0).all()
    estimate = torch.autograd.grad(value.sum(), (log_q, f))
    expected = torch.autograd.grad(exact.sum(), (log_q, f))
    # log q is a log-softmax, so its gradient is projected to the gradient of the logits.
    for got, want, normalise in zip(estimate, expected, (True, False), strict=True):
        if normalise:
            q = log_q.detach().exp()
            got, want = (g - q * g.sum(-1, keepdim=True) for g in (got, want))
        assert within(got - want, 1, 5).all() and got.std(1).max() > 0


@pytest.mark.parametrize("variant", ESTIMATED)
def test_a_models_sparse_bound_is_unbiased_in_value_and_gradient(variant):
    model, x, seeds, k = narrow(variant), binary(2, 4), 60, 40
    model.q_y.logits.weight.data *= 2.0
    parameters = [p for p in model.parameters() if p.requires_grad]  # the unused variance of a deterministic a needs no gradient
    runs = {}
    for label_sum in (ExactSum(), SparseSum(0.7)):
        values = []
        for seed in range(seeds):
            terms = model.draw(model.encode(x, label_sum), x, k, Noise(seed), label_sum)
            value = terms.bound(0.9).mean(1)
            gradient = torch.autograd.grad(value.sum(), parameters, materialize_grads=True)
            values.append(torch.cat([value.detach(), *(g.flatten() for g in gradient)]))
        runs[label_sum] = torch.stack(values)
    exact, sparse = runs.values()
    assert within(sparse - exact, 0, 5).all()
    assert (sparse - exact)[:, : len(x)].abs().min() > 1e-6  # the two sums must differ
    assert len(terms.labels.y) < 2 * k * Y


def test_sparse_sums_below_the_least_probability_are_exact():
    """With τ ≤ min q, every label must be kept with the weight q."""
    log_q = log_probabilities(3, 4, 5)
    kept = SparseSum(float(log_q.exp().min()) * 0.99).bind(log_q, 4, Noise(0), 0)
    assert len(kept.y) == log_q.numel()
    torch.testing.assert_close(kept.weight, log_q.exp().flatten())


@pytest.mark.parametrize("variant", ESTIMATED)
def test_a_cold_gumbel_softmax_tends_to_the_exact_value(variant):
    model, x, k = make(variant), binary(2), 20000
    with torch.no_grad():
        exact, cold, warm = (
            model.draw(model.encode(x, label), x, k, Noise(seed), label).bound(0.9)
            for seed, label in enumerate((ExactSum(), GumbelSoftmax(1e-4), GumbelSoftmax(20.0)))
        )
    assert within(cold - exact, 1).all() and not within(warm - exact, 1).all()


def test_gumbel_noise_draws_the_labels_by_their_probability():
    log_q = log_probabilities(2, 20000, 4)
    y = GumbelSoftmax(1e-4).bind(log_q, 20000, Noise(0), 0).y
    torch.testing.assert_close(y.sum(-1), torch.ones(2, 20000, dtype=torch.float64))
    assert within(y - log_q.exp(), 1).all()
    drawn = SampledLabel().bind(log_q, 20000, Noise(0), 0).y
    assert within(torch.nn.functional.one_hot(drawn, 4) - log_q.exp(), 1).all()


@pytest.mark.parametrize("variant", LABELLED)
def test_a_sampled_label_refuses_gradients(variant):
    model, x = make(variant), binary(3)
    with pytest.raises(InputError, match="a sampled label has no gradient"):
        model.log_weights(x, 2, SampledLabel())
    with torch.no_grad():
        assert model.log_weights(x, 2, SampledLabel()).shape == (3, 2)


@pytest.mark.parametrize("variant", ESTIMATED)
@pytest.mark.parametrize(("name", "label_sum"), [("sparse", SparseSum()), ("gumbel", GumbelSoftmax())])
def test_estimates_stay_outside_the_logarithm(variant, name, label_sum):
    model, x = make(variant), binary(3)
    with pytest.raises(InputError, match="take the exact sum where K > 1"):
        model.log_weights(x, 2, label_sum)
    with pytest.raises(InputError, match="exact where k > 1"):
        Objective(k=2, label_sum=name)
    assert Objective(m=2, label_sum=name).loss(model, x, None, 1.0, 1)[0].isfinite()


@pytest.mark.parametrize("variant", ESTIMATED)
def test_a_sparse_sum_refuses_batch_norm_in_training(variant):
    model, x = make(variant, batch_norm=True), binary(3)
    with pytest.raises(InputError, match="sparse label sum and batch normalisation in training exclude each other"):
        model.elbo(x, SparseSum())
    assert model.eval().elbo(x, SparseSum()).bound.isfinite().all()


def test_a_sparse_sum_refuses_a_prior_that_depends_on_a_latent():
    with pytest.raises(InputError, match=r"the sparse sum needs a p\(y.*take the exact sum"):
        make("cagem").elbo(binary(3), SparseSum())


def test_m1_is_trained_alone_and_then_frozen():
    x, labelled = binary(7), Labelled(binary(3), labels(3), 0.7, 7)
    model = make("m1m2", pretrain_epochs=2)
    for epoch, trained in ((0, "m1."), (1, "m1."), (2, "other"), (3, "other")):
        model.begin_epoch(epoch)
        model.zero_grad(set_to_none=True)
        assert model.ignores_labels == (trained == "m1.")
        rows = None if model.ignores_labels else labelled
        Objective().loss(model.train(), x, None, 1.0, 1, labelled=rows)[0].backward()
        for name, p in model.named_parameters():
            assert (p.grad is not None) == ((name.startswith("m1.")) == (trained == "m1.")), name
            assert p.grad is None or p.grad.any(), name
    model.begin_epoch(0)
    vae = model.m1.elbo(x, seed=5).bound
    torch.testing.assert_close(model.elbo(x, seed=5).bound, vae)
    assert zero(model).elbo(x).bound.allclose(torch.tensor(6 * math.log(0.5), dtype=torch.float64))


def test_a_frozen_m1_keeps_its_batch_statistics():
    model, x = make("m1m2", pretrain_epochs=1, batch_norm=True), binary(7)
    for epoch in (0, 1):
        model.begin_epoch(epoch)
        model.train()
        before = [layer.running_mean.clone() for layer in norms(model.m1)]
        Objective().loss(model, x, None, 1.0, 1)
        kept = [torch.equal(b, layer.running_mean) for b, layer in zip(before, norms(model.m1), strict=True)]
        assert len(kept) > 0 and all(kept) == (epoch == 1) == any(kept)


def test_m1_and_m2_train_together_where_asked():
    model = make("m1m2", pretrain_epochs=0)
    model.begin_epoch(0)
    Objective().loss(model, binary(4), None, 1.0, 1, labelled=Labelled(binary(3), labels(3), 0.7, 4))[0].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("variant", [variant for variant in TINY if not variant.startswith("fame")])
def test_a_row_without_weight_does_not_spoil_the_others(variant):
    """If p(x | latents) = 0 for every sample of a row, log p(x) is −∞ and must not change the gradient of the other rows."""
    model, x = narrow(variant), binary(4, 4)
    x[:, 1:3] = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None]
    with torch.no_grad():
        model.output.logits.bias[1:3] = -1.7e308  # twice this number overflows

    def gradients(rows):
        model.zero_grad()
        bound = ops.importance_bound(model.log_weights(rows, 3, seed=2))
        kept = bound.isfinite()
        assert kept.tolist() == [True] * 3 + [False] * (len(rows) - 3)
        torch.where(kept, bound, 0.0).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(x[:3])
    for name, grad in gradients(x).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")

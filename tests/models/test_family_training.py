"""Tests of the semi-supervised loss (eqs 4.10 and 4.11) and of the labelled rows of a training run."""

import math

import pytest
import torch
from support import toy
from support.family import LABELLED, binary, densities, labels, make

from dgmfast import models, train
from dgmfast.errors import InputError
from dgmfast.models import Noise
from dgmfast.objectives import Labelled, Objective
from dgmfast.runs import Group
from dgmfast.train.labelled import LabelledRows

WITH_BOUND = [variant for variant in LABELLED if variant != "cagem"]  # CaGeM's labelled rows have no bound
UNLABELLED, ROWS, DRAWS, SEED, ALPHA, BETA = 5, 3, 4, 8, 1.7, 0.6


def batch():
    x = binary(UNLABELLED + ROWS)
    return x[ROWS:], Labelled(x[:ROWS], labels(ROWS), ALPHA, UNLABELLED)


def cross_entropies(model, terms, labelled):
    """Returns −log q(y|a, x) at each draw, from the factors."""
    v = {name: latent.z for name, latent in terms.latents.items()}
    return -densities(model, labelled.x, v, labelled.y)[1]["y"].expand(ROWS, DRAWS)


def supervised(model, labelled):
    return model.draw(model.encode(labelled.x, labelled.y), labelled.x, DRAWS, Noise(SEED, labelled.first_row), labelled.y)


@pytest.mark.parametrize("variant", WITH_BOUND)
def test_the_semi_supervised_loss_is_its_definition(variant):
    """The loss must be mean_u[−U] + mean_l[−L(x, y) + α E_a[−log q(y|a, x)]], with separate noise for the labelled rows."""
    model, (x, labelled) = make(variant), batch()
    with torch.no_grad():
        loss, log = Objective(m=DRAWS).loss(model, x, None, BETA, SEED, labelled=labelled)
        u = model.draw(model.encode(x), x, DRAWS, Noise(SEED)).bound(BETA)
        terms = supervised(model, labelled)
    bound, entropy = terms.bound(BETA), cross_entropies(model, terms, labelled)
    expected = -u.mean(1).mean() - bound.mean(1).mean() + ALPHA * entropy.mean(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log["ce_q_y"], entropy.mean())
    torch.testing.assert_close(log["labelled_elbo"], terms.bound().mean())
    torch.testing.assert_close(log["elbo"], model.elbo(x, k=DRAWS, seed=SEED).bound.mean())
    outside = -entropy.neg().exp().mean(1).log().mean()
    noiseless = variant in ("m2", "adgm-deterministic")
    assert (entropy.mean() > outside + 1e-6) != noiseless, "−log of the mean would be another loss"


@pytest.mark.parametrize("variant", WITH_BOUND)
def test_the_loss_with_importance_samples_and_with_free_bits(variant):
    """K > 1 must use log (1/K) Σ w^β of both sets of rows; free bits must bound every KL, also the label's, from below."""
    model, (x, labelled) = make(variant), batch()
    with torch.no_grad():
        terms = [model.draw(model.encode(x), x, DRAWS, Noise(SEED)), supervised(model, labelled)]
        entropy = ALPHA * cross_entropies(model, terms[1], labelled).mean()
        importance = Objective(k=2, m=2).loss(model, x, None, BETA, SEED, labelled=labelled)[0]
        kl = [{name: value.mean() for name, value in t.kl_terms().items()} for t in terms]
        floor = float(kl[0]["y"] + kl[1]["y"]) / 2
        free = Objective(m=DRAWS, free_bits=floor).loss(model, x, None, BETA, SEED, labelled=labelled)[0]
    expected = [-(torch.logsumexp(t.log_weights(BETA).unflatten(1, (2, 2)), 2) - math.log(2)).mean() for t in terms]
    torch.testing.assert_close(importance, sum(expected) + entropy)
    cost = sum(BETA * max(float(value), floor) for group in kl for value in group.values())
    torch.testing.assert_close(free, cost - sum(t.reconstruction().mean() for t in terms) + entropy)
    assert (kl[0]["y"] - floor) * (kl[1]["y"] - floor) < 0  # the label's term is below the floor in one of the two sets of rows


def test_cagems_loss_adds_the_cross_entropies_of_both_classifiers_alone():
    """The loss must be eq. 4.33, with −log of the cascade's p(y|z₁) = Σ_ỹ q(ỹ|z₁, x) p(y|z₂)."""
    model, (x, labelled) = make("cagem"), batch()
    with torch.no_grad():
        loss, log = Objective(m=DRAWS).loss(model, x, None, BETA, SEED, labelled=labelled)
        u = model.draw(model.encode(x), x, DRAWS, Noise(SEED)).bound(BETA).mean()
        classify = [model.classify(labelled.x, 1, SEED, by, first_row=UNLABELLED) for by in ("q", "cascade")]
        one = Objective().loss(model, x, None, BETA, SEED, labelled=labelled)[1]
    torch.testing.assert_close(loss, -u + ALPHA * (log["ce_q_y"] + log["ce_p_y"]))
    for name, probabilities in zip(("ce_q_y", "ce_p_y"), classify, strict=True):
        torch.testing.assert_close(one[name], -probabilities[torch.arange(ROWS), labelled.y].log().mean())
    assert "labelled_elbo" not in log


def test_warm_up_begins_and_ends_as_told():
    for start, epochs in ((0.0, 200), (0.0, 100), (0.3, 200)):
        objective = Objective(warmup_start=start, warmup_epochs=epochs)
        assert [objective.beta(e) for e in (0, epochs, 5 * epochs)] == [start, 1.0, 1.0]
        assert objective.beta(epochs // 4) == pytest.approx(start + (1.0 - start) / 4)


MODEL = {"name": "adgm", "latent": 2, "auxiliary": 2, "hidden": [6]}
LABELS = 8


def recipe(**settings):
    return toy.recipe(**{"model": MODEL, "labels": LABELS, "labelled_batch": 6, "binarize": False, **settings})


def labelled_rows(**settings):
    model = models.create("adgm", x_dim=16, num_classes=4, latent=2, auxiliary=2, hidden=(6,))
    return LabelledRows(recipe(**settings), toy.dataset(), model, torch.device("cpu"))


def places(x, among):
    """Returns the index in `among` of each row of x."""
    same = (x.unsqueeze(1) == among.unsqueeze(0)).all(2)
    assert (same.sum(1) == 1).all()
    return same.double().argmax(1)


def test_the_labelled_rows_are_even_seeded_and_apart_from_the_others():
    dataset, rows = toy.dataset(), labelled_rows()
    chosen = places(rows.x, dataset.train.x)
    assert torch.equal(dataset.train.y[chosen], rows.y) and rows.y.bincount().tolist() == [2, 2, 2, 2]
    assert sorted([*chosen.tolist(), *rows.others.tolist()]) == list(range(61))
    assert torch.equal(labelled_rows().x, rows.x)
    assert not torch.equal(labelled_rows(seed=1).x, rows.x)
    larger = places(labelled_rows(labels=12).x, dataset.train.x)
    assert set(chosen.tolist()) < set(larger.tolist())


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("count", [4, 8, 40])
def test_alpha_is_beta_times_all_rows_per_labelled_row(beta, count):
    rows = labelled_rows(labels=count, objective=Objective(alpha=beta))
    assert rows.batch(0, Group(), 14).alpha == pytest.approx(beta * 61 / count)


def test_a_labelled_batch_is_a_function_of_its_step():
    """A labelled batch must depend only on its step, so that a run can resume anywhere; each pass has its own order."""
    rows = labelled_rows()
    batches = [rows.batch(step, Group(), 14) for step in range(8)]
    for step in (5, 0, 7, 1):
        again = labelled_rows().batch(step, Group(), 14)
        assert all(torch.equal(a, b) for a, b in zip(again[:2], batches[step][:2], strict=True)) and again.first_row == 14
        mixed = rows.batch(step, Group(), 14)
        assert torch.equal(mixed.x, batches[step].x) and torch.equal(mixed.y, batches[step].y)
    assert all(len(b.x) == len(b.y) == 6 for b in batches)
    order = places(torch.cat([b.x for b in batches]), rows.x)
    assert torch.equal(rows.y[order], torch.cat([b.y for b in batches]))
    passes = order.view(6, LABELS)
    assert (passes.sort(1).values == torch.arange(LABELS)).all()
    assert len({tuple(p) for p in passes.tolist()}) == 6


def test_a_labelled_batch_larger_than_the_labelled_rows_goes_round_them():
    rows = labelled_rows(labels=4, labelled_batch=10)
    order = places(torch.cat([rows.batch(step, Group(), 10).x for step in range(2)]), rows.x).view(5, 4)
    assert (order.sort(1).values == torch.arange(4)).all()


def test_the_processes_share_a_labelled_batch():
    rows = labelled_rows()
    for step in range(3):
        whole, parts = rows.batch(step, Group(), 14), [rows.batch(step, Group(rank, 4), 14) for rank in range(4)]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.y for part in parts]), whole.y)
        starts = [14 + sum(len(part.x) for part in parts[:rank]) for rank in range(4)]
        assert [part.first_row for part in parts] == starts


def test_every_pass_over_the_labelled_rows_draws_their_binary_images_anew():
    rows = labelled_rows(binarize=True, labelled_batch=8)
    passes = [rows.batch(step, Group(), 12) for step in range(2)]
    assert all(((b.x == 0) | (b.x == 1)).all() for b in passes)
    by_class = [torch.stack([b.x[b.y == c].sum(0) for c in range(4)]) for b in passes]
    assert not torch.equal(*by_class)
    assert torch.equal(labelled_rows(binarize=True, labelled_batch=8).batch(1, Group(), 12).x, passes[1].x)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"labels": 6}, "n must be a positive multiple of classes, 4; got 6"),
        ({"labels": 64}, "n must be at most the number of rows, 61; got 64"),
        ({"model": toy.MODEL}, "labels must be 0 for vae, which takes none; got 8"),
        ({"model": {**MODEL, "num_classes": 3}}, r"model.num_classes must be 4, as in toy; got 3"),
        ({"labelled_batch": 0}, r"labelled_batch must lie in 1\.\.19, below batch_size; got 0"),
        ({"labelled_batch": 20}, r"labelled_batch must lie in 1\.\.19, below batch_size; got 20"),
    ],
)
def test_labels_that_are_refused(settings, told, tmp_path):
    with pytest.raises(InputError, match=told):
        train.fit(recipe(**settings), tmp_path / "run", dataset=toy.dataset(), progress=False, figures=False)


STACKED = {"latent": [2, 2], "hidden1": [5], "hidden2": [4]}


@pytest.mark.parametrize(
    ("model", "first"),
    [
        (MODEL, True),
        ({**STACKED, "name": "cagem"}, True),
        pytest.param({**STACKED, "name": "m1m2", "pretrain_epochs": 1}, False),
    ],
    ids=["adgm", "cagem", "m1m2"],
)
def test_a_semi_supervised_run_resumes_bit_for_bit(model, first, tmp_path):
    """A run must resume bit for bit; `first` says whether labels take part in the first epoch, as they do in the last."""
    quiet = {"dataset": toy.dataset(), "progress": False, "figures": False}
    train.fit(recipe(model=model, epochs=2), tmp_path / "whole", **quiet)
    train.fit(recipe(model=model, epochs=1), tmp_path / "parts", **quiet)
    train.resume(tmp_path / "parts", {"epochs": 2}, **quiet)
    toy.assert_same_run(tmp_path / "parts", tmp_path / "whole")
    logged = toy.metrics(tmp_path / "whole")
    assert ("ce_q_y" in logged[0]) == first and "ce_q_y" in logged[1]

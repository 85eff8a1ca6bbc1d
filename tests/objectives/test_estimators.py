"""Tests of the gradients of the importance-weighted bound: quadrature, agreement of the estimators, and constant memory."""

import copy
import itertools
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from support import toy

from dgmfast import train
from dgmfast.errors import InputError
from dgmfast.models import ADGM, LVAE, M2, VAE, CaGeM, Noise
from dgmfast.objectives import Objective

# The models are smooth, as quadrature needs.
SMALL = {"hidden": [[3], [2]], "activation": "tanh", "head": "log_var", "batch_norm": False, "norm_heads": False}
MODELS = {
    "one layer": lambda: VAE(3, [1], [[4]]),
    "bottom-up": lambda: VAE(3, [1, 1], **SMALL),
    "top-down": lambda: LVAE(3, [1, 1], **SMALL),
}


def make(name):
    torch.manual_seed(1)
    return MODELS[name]().double()


def gradient(model, objective, x, seed=0, beta=1.0, y=None):
    """Returns the loss, the gradient in all parameters as one vector, and the log."""
    model.zero_grad()
    loss, log = objective.loss(model, x, y, beta, seed)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), log


@dataclass(frozen=True)
class Nodes(Noise):
    """Noise that returns the nodes of a quadrature as the samples of one row; `eps[stream]` is [n]."""

    eps: tuple = ()

    def gaussian(self, q, k, stream):
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)
        z = mean + (0.5 * log_var).exp() * self.eps[stream].view(1, -1, 1)
        return z, torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(-1)


def exact_gradient(model, x, beta, count=22, k=2):
    """Returns the gradient of −E log ½(w₁^β + w₂^β), or of −E log w^β, by Gauss–Hermite quadrature over each sample's noise."""
    points, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(count))
    weights = weights / math.sqrt(2 * math.pi)
    latents = len(model.latent)
    grid = torch.tensor(list(itertools.product(range(count), repeat=latents)))
    mass = weights[grid].prod(1)
    model.zero_grad()
    terms = model.draw(model.encode(x), x, len(grid), Nodes(0, eps=tuple(points[grid[:, i]] for i in range(latents))))
    log_w = terms.log_weights(beta)[0]
    if k == 1:
        (-(mass * log_w).sum()).backward()
    else:
        pairs = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
        (-(mass.unsqueeze(0) * mass.unsqueeze(1) * pairs).sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def mean_gradient(model, objective, x, beta, rows=2000, repeats=20):
    """Returns the mean of many draws of the gradient, and its standard error."""
    many = x.expand(rows, -1)
    found = torch.stack([gradient(model, objective, many, seed, beta)[1] for seed in range(repeats)])
    return found.mean(0), found.std(0) / math.sqrt(repeats)


X = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("name", MODELS)
def test_iwae_and_dreg_are_unbiased(name, beta):
    model = make(name)
    exact = exact_gradient(model, X, beta)
    for estimator in ("iwae", "dreg"):
        mean, error = mean_gradient(model, Objective(k=2, estimator=estimator), X, beta)
        assert ((mean - exact).abs() <= 5 * error + 1e-9).all(), estimator
        assert exact.norm() > 20 * error.norm()  # the error must be small, or the comparison would mean little


@pytest.mark.parametrize("name", MODELS)
def test_stl_is_biased_for_two_samples_and_not_for_one(name):
    model = make(name)
    exact = exact_gradient(model, X, 1.0)
    mean, error = mean_gradient(model, Objective(k=2, estimator="stl"), X, 1.0)
    assert ((mean - exact).abs() > 10 * error + 1e-9).any()
    one, one_error = mean_gradient(model, Objective(k=1, estimator="stl"), X, 1.0)
    assert ((one - exact_gradient(model, X, 1.0, k=1)).abs() <= 5 * one_error + 1e-9).all()


def inference_parameters(model):
    inner = {id(p) for p in model.q.parameters()}
    return torch.cat([torch.full((p.numel(),), id(p) in inner) for p in model.parameters()])


def test_the_variance_of_dreg_does_not_grow_with_k():
    model = make("one layer")
    inference = inference_parameters(model)

    def noise_to_signal(estimator, k):
        found = torch.stack([gradient(model, Objective(k=k, estimator=estimator), X, seed)[1] for seed in range(300)])[
            :, inference
        ]
        return (found.var(0).sum() / found.mean(0).square().sum()).sqrt(), found.var(0).sum()

    (few, few_variance), (many, many_variance) = noise_to_signal("dreg", 2), noise_to_signal("dreg", 64)
    assert many_variance < few_variance and many < 1.5 * few
    assert noise_to_signal("iwae", 64)[0] > 2 * many  # the signal of IWAE falls faster than its noise (Rainforth et al. 2018)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_give_the_gradient_of_the_whole(name, estimator, beta):
    model = make(name)
    x = (torch.rand(5, 3, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    loss, whole, log = gradient(model, Objective(k=6, m=2, estimator=estimator), x, 7, beta)
    for chunk in (1, 5, 6, 12, 50):
        settings = {"k": 6, "m": 2, "estimator": estimator, "chunk": chunk}
        streamed, found, streamed_log = gradient(model, Objective(**settings), x, 7, beta)
        torch.testing.assert_close((streamed, found), (loss, whole), rtol=1e-12, atol=1e-13)
        assert streamed_log.keys() == log.keys()
        torch.testing.assert_close(list(streamed_log.values()), list(log.values()), rtol=1e-10, atol=1e-12)
        # With a filter that skips no sample, every sample is drawn again by itself.
        _, found, filtered = gradient(model, Objective(**settings, weight_filter=1e-200), x, 7, beta)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)
        assert filtered["skipped_samples"] == 0.0 and filtered["skipped_weight"] == 0.0


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_a_filter_leaves_the_kept_samples_as_they_were(estimator):
    model, x = make("top-down"), X.expand(4, -1)
    settings = {"k": 20, "estimator": estimator, "chunk": 7}
    whole = gradient(model, Objective(**settings), x)[1]
    _, found, log = gradient(model, Objective(**settings, weight_filter=0.03), x)
    assert 0 < log["skipped_samples"] < 1
    assert 0 < (found - whole).norm() < 2 * log["skipped_weight"] * whole.norm()


def test_the_filter_skips_what_it_reports():
    model, x = make("bottom-up"), X.expand(4, -1)
    threshold = 0.05
    _, found, log = gradient(model, Objective(k=20, chunk=7, weight_filter=threshold), x)
    with torch.no_grad():
        weight = torch.softmax(model.log_weights(x, 20, seed=0), 1)
    skipped = weight < threshold
    assert 0 < skipped.double().mean() < 1
    assert log["skipped_samples"].item() == pytest.approx(skipped.double().mean().item())
    assert log["skipped_weight"].item() == pytest.approx((weight * skipped).sum().item() / 4)
    model.zero_grad()
    kept = weight.masked_fill(skipped, 0.0)
    (-(kept * model.log_weights(x, 20, seed=0)).sum(1).mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # With a threshold above every weight, all samples are skipped.
    model.zero_grad()
    loss, log = Objective(k=20, chunk=7, weight_filter=0.999).loss(model, x, None, 1.0, 0)
    loss.backward()
    assert log["skipped_samples"] == 1.0 and all(p.grad is None for p in model.decoder.parameters())


LABELLED = {
    "m2": lambda: M2(6, 3, latent=2, hidden=[4]),
    "adgm": lambda: ADGM(6, 3, latent=2, auxiliary=2, hidden=[4], auxiliary_sees_x=True),
    "cagem": lambda: CaGeM(6, 3, latent=[2, 2], hidden1=[4], hidden2=[4], batch_norm=False),
}


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_that_is_observed_or_summed_over_exactly(name):
    torch.manual_seed(0)
    model = LABELLED[name]().double()
    x, y = torch.rand(5, 6).round().double(), torch.tensor([0, 1, 2, 0, 1])
    for label, estimators in ((y, ("iwae", "stl", "dreg")), (None, ("iwae",))):
        for estimator in estimators:
            grads = []
            for chunk in (0, 3):
                loss, _ = Objective(k=8, estimator=estimator, chunk=chunk).loss(model, x, label, 1.0, 0)
                grads.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
            assert [g is None for g in grads[0]] == [g is None for g in grads[1]]  # optimisers skip parameters without a gradient
            pairs = [pair for pair in zip(*grads, strict=True) if pair[0] is not None]
            torch.testing.assert_close(*zip(*pairs, strict=True), rtol=1e-10, atol=1e-12)
    for settings in ({"estimator": "stl"}, {"chunk": 2, "weight_filter": 0.1}):
        with pytest.raises(InputError, match="a label that is summed over needs the estimator iwae"):
            Objective(k=4, **settings).loss(model, x, None, 1.0, 0)


@pytest.mark.parametrize("name", LABELLED)
def test_dreg_is_unbiased_with_an_observed_label(name):
    torch.manual_seed(0)
    model, y = LABELLED[name]().double(), torch.tensor([1])
    x = torch.rand(1, 6).round().double()

    def mean(estimator):
        found = []
        for seed in range(16):
            loss, _ = Objective(k=2, estimator=estimator).loss(model, x.expand(800, -1), y.expand(800), 1.0, seed)
            grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
            found.append(torch.cat([g.flatten() for g in grads]))
        found = torch.stack(found)
        return found.mean(0), found.var(0) / len(found)

    (first, variance), (second, other) = mean("iwae"), mean("dreg")
    assert ((first - second).abs() <= 6 * (variance + other).sqrt() + 1e-9).all()
    assert first.norm() > 10 * variance.sum().sqrt()


def dropped(model, objective, x):
    """Computes the loss and gradient from a fixed state of torch's generator."""
    torch.manual_seed(5)
    return gradient(model, objective, x)


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_dropout_is_replayed(estimator):
    torch.manual_seed(0)
    model = VAE(3, [2], [[8]]).double()
    model.decoder.append(torch.nn.Dropout(0.5))
    x = X.expand(4, -1)
    # With one chunk, the dropout masks are those of the plain form.
    _, whole, _ = dropped(model, Objective(k=6, estimator=estimator), x)
    after = torch.rand(1)
    _, found, _ = dropped(model, Objective(k=6, estimator=estimator, chunk=6), x)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-13)
    assert torch.equal(torch.rand(1), after)  # the second pass must leave the generator where the first did
    # The gradient of the decoder must be that of the loss with the same masks.
    weight = model.output.logits.weight
    index = sum(p.numel() for p in itertools.takewhile(lambda p: p is not weight, model.parameters()))
    for chunk in (0, 2):
        objective, step, around = Objective(k=6, estimator=estimator, chunk=chunk), 1e-6, []
        _, found, _ = dropped(model, objective, x)
        for moved in (step, -2 * step, step):
            with torch.no_grad():
                weight[0, 0] += moved
            around.append(dropped(model, objective, x)[0].item())
        assert (around[0] - around[1]) / (2 * step) == pytest.approx(found[index].item(), rel=1e-6, abs=1e-9)
    with pytest.raises(InputError, match="weight_filter must be 0 with dropout"):
        gradient(model, Objective(k=6, chunk=2, weight_filter=0.1), x)


def test_what_a_chunk_cannot_do_raises():
    model = make("one layer")
    loss, _ = Objective(k=4, chunk=2).loss(model, X, None, 1.0, 0)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    for cannot in (Objective(k=4, chunk=2), Objective(k=4, estimator="stl"), Objective(k=4, estimator="dreg")):
        with pytest.raises(InputError, match="a gradient in x needs the estimator 'iwae' and chunk = 0"):
            cannot.loss(model, X.clone().requires_grad_(), None, 1.0, 0)
    loss, _ = Objective(k=4, chunk=2).loss(model, X, None, 1.0, 0)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_holds_for_the_second_pass():
    model = make("one layer").float()
    x = X.float().expand(4, -1)
    found = []
    for chunk in (0, 2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = Objective(k=4, chunk=chunk).loss(model, x, None, 1.0, 0)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_compiled_around(estimator):
    model, objective = make("one layer"), Objective(k=4, estimator=estimator, chunk=2 * (estimator == "iwae"))
    _, eager, _ = gradient(model, objective, X)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: objective.loss(model, x, None, 1.0, 0)[0], backend="aot_eager")
    model.zero_grad()
    compiled(X).backward()
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), eager, rtol=1e-10, atol=1e-12)


def test_a_weight_of_zero_adds_nothing():
    class Impossible(VAE):
        def draw(self, encoding, x, k, noise, y=None):
            terms = super().draw(encoding, x, k, noise, y)
            terms.log_px = terms.log_px.index_fill(1, torch.tensor([1]), -math.inf)
            return terms

    torch.manual_seed(0)
    model = Impossible(3, [2], [[4]]).double()
    for estimator in ("iwae", "stl", "dreg"):
        loss, found, _ = gradient(model, Objective(k=4, estimator=estimator), X)
        assert loss.isfinite() and found.isfinite().all(), estimator


@pytest.mark.parametrize("settings", [{"chunk": 2}, {"estimator": "dreg"}])
def test_batch_norm_between_samples_is_refused_or_takes_running_statistics(settings):
    torch.manual_seed(0)
    model = LVAE(3, [2, 1], [[3], [2]]).double()
    x = torch.rand(6, 3).round().double()
    with pytest.raises(InputError, match=r"objective\.chunk 0 where batch norm in training couples"):
        Objective(k=4, **settings).loss(model, x, None, 1.0, 0)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm1d)}
    assert all(norm.training and not norm._forward_pre_hooks for norm in norms.values())
    between = [norm for name, norm in norms.items() if name.startswith(("p.", "decoder"))]
    before = [norm.running_mean.clone() for norm in between]
    start = copy.deepcopy(model.state_dict())
    _, found, _ = gradient(model, Objective(k=4, **settings, running_statistics=True), x)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(between, before, strict=True))
    model.load_state_dict(start)
    for norm in between:
        norm.eval()
    _, expected, _ = gradient(model, Objective(k=4, estimator=settings.get("estimator", "iwae")), x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


PEAK = """
import sys, torch
from pathlib import Path
from dgmfast.models import VAE
from dgmfast.objectives import Objective
torch.set_num_threads(1)
model, x = VAE(), torch.rand(10, 784).round()
def peak(k):
    Objective(k=k, chunk=50).loss(model, x, None, 1.0, 0)[0].backward()
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
first = peak(50)
print((peak(2000) - first) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of Linux")
def test_memory_does_not_grow_with_k():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    # All samples at once would take 2000 x 10 x 784 logits, 60 MB, and as much for each of several layers.
    assert float(done.stdout) < 30.0


def test_a_run_is_refused_before_its_folder_is_made(tmp_path):
    for objective, told in (
        (Objective(k=4, chunk=2), "batch norm in training couples"),
        (Objective(k=4, estimator="stl"), "batch norm in training couples"),
    ):
        wrong = toy.recipe(objective=objective, batch_size=16, model=toy.MODEL | {"batch_norm": True})
        with pytest.raises(InputError, match=told):
            train.fit(wrong, tmp_path / "run", dataset=toy.dataset(), progress=False, figures=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"estimator": "vimco"}, "estimator must be one of iwae, stl, dreg; got 'vimco'"),
        ({"chunk": -1}, "chunk must be at least 0"),
        ({"k": 2, "chunk": 5, "weight_filter": 1.0}, r"weight_filter in \[0, 1\)"),
        ({"weight_filter": 0.1}, "needs a chunk"),
        ({"running_statistics": True}, "needs a chunk, or the estimator stl or dreg"),
        ({"chunk": 5}, "chunk must be 0 where k = 1"),
        ({"estimator": "stl", "free_bits": 1.0}, "free_bits must be 0"),
        ({"k": 2, "chunk": 3, "label_sum": "sparse"}, "label_sum must be one of"),
    ],
)
def test_settings_are_checked(settings, told):
    with pytest.raises(InputError, match=told):
        Objective(**settings)

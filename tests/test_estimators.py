"""Gradients of the importance-weighted bound: against quadrature, against each other, and in constant memory."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgmfast.errors import InputError
from dgmfast.models import LVAE, M2, VAE, Noise
from dgmfast.objectives import Objective

# smooth, for the quadrature
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
    """Loss, gradient in all parameters in one vector, and log."""
    model.zero_grad()
    loss, log = objective.loss(model, x, y, beta, seed)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), log


@dataclass(frozen=True)
class Nodes(Noise):
    """The nodes of a quadrature as the samples of one row: `eps[stream]`, [n]."""

    eps: tuple = ()

    def gaussian(self, q, k, stream):
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)
        z = mean + (0.5 * log_var).exp() * self.eps[stream].view(1, -1, 1)
        return z, torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(-1)


def exact_gradient(model, x, beta, count=22):
    """The gradient of −E log ½(w₁^β + w₂^β) by Gauss–Hermite quadrature over the noise of both samples."""
    points, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(count))
    weights = weights / math.sqrt(2 * math.pi)
    latents = len(model.latent)
    grid = torch.tensor(list(itertools.product(range(count), repeat=latents)))
    mass = weights[grid].prod(1)
    model.zero_grad()
    terms = model.draw(model.encode(x), x, len(grid), Nodes(0, eps=tuple(points[grid[:, i]] for i in range(latents))))
    log_w = terms.log_weights(beta)[0]
    pairs = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
    (-(mass.unsqueeze(0) * mass.unsqueeze(1) * pairs).sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def mean_gradient(model, objective, x, beta, rows=2000, repeats=20):
    """Mean over many draws, and its standard error."""
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
        assert exact.norm() > 20 * error.norm()  # so that the comparison says something


@pytest.mark.parametrize("name", MODELS)
def test_stl_is_biased_for_two_samples_and_not_for_one(name):
    model = make(name)
    exact = exact_gradient(model, X, 1.0)
    mean, error = mean_gradient(model, Objective(k=2, estimator="stl"), X, 1.0)
    assert ((mean - exact).abs() > 10 * error + 1e-9).any()
    one, one_error = mean_gradient(model, Objective(k=1, estimator="stl"), X, 1.0)
    total, total_error = mean_gradient(model, Objective(k=1, estimator="dreg", m=3), X, 1.0)
    assert ((one - total).abs() <= 5 * (one_error + total_error) + 1e-9).all()


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
    assert noise_to_signal("iwae", 64)[0] > 2 * many  # whose signal falls faster than its noise (Rainforth et al. 2018)


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
        # of which every sample counts, each drawn alone
        _, found, filtered = gradient(model, Objective(**settings, weight_filter=1e-200), x, 7, beta)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)
        assert filtered["skipped_samples"] == 0.0 and filtered["skipped_weight"] == 0.0


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
    # nothing passes a threshold that no weight reaches
    _, none, log = gradient(model, Objective(k=20, chunk=7, weight_filter=0.999), x)
    assert log["skipped_samples"] == 1.0 and not none.any()


def test_a_label_that_is_observed_or_summed_over_exactly():
    torch.manual_seed(0)
    model = M2(6, 3, latent=2, hidden=[4]).double()
    x, y = torch.rand(5, 6).round().double(), torch.tensor([0, 1, 2, 0, 1])
    for label, estimators in ((y, ("iwae", "stl", "dreg")), (None, ("iwae",))):
        for estimator in estimators:
            parameters = list(model.parameters())
            grads = []
            for chunk in (0, 3):
                loss, _ = Objective(k=8, estimator=estimator, chunk=chunk).loss(model, x, label, 1.0, 0)
                grads.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
            torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)
    for settings in ({"estimator": "stl"}, {"chunk": 2, "weight_filter": 0.1}):
        with pytest.raises(InputError, match="a label that is summed over needs the estimator iwae"):
            Objective(k=4, **settings).loss(model, x, None, 1.0, 0)


def test_dropout_is_replayed():
    torch.manual_seed(0)
    model = VAE(3, [2], [[8]]).double()
    model.decoder.append(torch.nn.Dropout(0.5))
    x = X.expand(4, -1)
    # one chunk: the masks of the plain form
    torch.manual_seed(5)
    _, whole, _ = gradient(model, Objective(k=6), x)
    after = torch.rand(1)
    torch.manual_seed(5)
    _, found, _ = gradient(model, Objective(k=6, chunk=6), x)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-13)
    assert torch.equal(torch.rand(1), after)  # the second pass leaves the generator where the first did
    # three chunks: the loss and its gradient have the same masks
    torch.manual_seed(5)
    _, found, _ = gradient(model, Objective(k=6, chunk=2), x)

    def value():
        torch.manual_seed(5)
        with torch.no_grad():
            return Objective(k=6, chunk=2).loss(model, x, None, 1.0, 0)[0]

    weight = model.output.logits.weight
    index = sum(p.numel() for p in itertools.takewhile(lambda p: p is not weight, model.parameters()))
    step = 1e-6
    with torch.no_grad():
        weight[0, 0] += step
        up = value()
        weight[0, 0] -= 2 * step
        down = value()
        weight[0, 0] += step
    assert ((up - down) / (2 * step)).item() == pytest.approx(found[index].item(), rel=1e-6, abs=1e-9)


def test_batch_norm_between_samples_is_refused_or_frozen():
    torch.manual_seed(0)
    model = LVAE(3, [2, 1], [[3], [2]]).double()
    x = torch.rand(6, 3).round().double()
    with pytest.raises(InputError, match=r"objective\.chunk must be 0 where batch norm in training couples"):
        Objective(k=4, chunk=2).loss(model, x, None, 1.0, 0)
    assert all(
        norm.training and not norm._forward_pre_hooks for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm1d)
    )
    found = []
    for chunk in (2, 4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found.append(gradient(model, Objective(k=4, chunk=chunk, frozen_statistics=True), x)[1])
        model.load_state_dict(before)
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that was made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.numel())
        return result


def test_memory_does_not_grow_with_k():
    torch.manual_seed(0)
    model, x = VAE(40, [3], [[20]]), torch.rand(3, 40).round()

    def largest(**settings):
        with Largest() as seen:
            gradient(model, Objective(**settings), x)
        return seen.size

    assert largest(k=50, chunk=10) == largest(k=150, chunk=10) < largest(k=50) / 3
    assert largest(k=150) == 3 * largest(k=50)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"estimator": "vimco"}, "estimator must be one of iwae, stl, dreg; got 'vimco'"),
        ({"chunk": -1}, "chunk must be at least 0"),
        ({"chunk": 5, "weight_filter": 1.0}, r"weight_filter in \[0, 1\)"),
        ({"weight_filter": 0.1}, "need a chunk"),
        ({"frozen_statistics": True}, "need a chunk"),
        ({"estimator": "stl", "free_bits": 1.0}, "free_bits must be 0"),
        ({"chunk": 3, "label_sum": "sparse"}, "label_sum exact"),
    ],
)
def test_settings_are_checked(settings, told):
    with pytest.raises(InputError, match=told):
        Objective(**settings)

"""The protocol beyond the VAE: a label that is observed or summed over, on the smallest model that has one."""

import math

import pytest
import torch
from test_vae import binary
from torch import nn
from torch.nn import functional as F

from dgmfast import evaluate, models, ops
from dgmfast.errors import InputError
from dgmfast.models import GenerativeModel, Noise, Terms
from dgmfast.nn import GaussianMLP
from dgmfast.objectives import Objective

D, Y, Z, A = 12, 3, 4, 2


class Labelled(GenerativeModel):
    """p(y) p(z) p(a|z,y) p(x|z,y) with q(a|x) q(y|a,x) q(z|a,x,y), as in the ADGM; all labels share the noise of z."""

    x_dim, num_classes = D, Y

    def __init__(self) -> None:
        super().__init__()
        self.q_a = GaussianMLP(D, (7,), A)
        self.q_y = nn.Linear(A + D, Y)
        self.q_z = GaussianMLP(A + D + Y, (9,), Z)
        self.p_a = GaussianMLP(Z + Y, (6,), A)
        self.p_x = nn.Linear(Z + Y, D)
        self.p_y = nn.Parameter(torch.randn(Y))

    def encode(self, x, y=None):
        mean, log_var = self.q_a(x)
        return {"mean": mean, "log_var": log_var}

    def _given(self, a, x, k, label, noise):
        """The terms of z, a and x under one label per row, [B, k]."""
        one_hot = F.one_hot(label, Y).to(x.dtype).unsqueeze(1).expand(-1, k, -1)
        mean, log_var = self.q_z(torch.cat([a, x.unsqueeze(1).expand(-1, k, -1), one_hot], -1))
        z, log_q = noise.gaussian(mean, log_var, 1, stream=1)
        both = torch.cat([z, one_hot], -1)
        log_px = ops.bernoulli_log_prob(self.p_x(both), x.unsqueeze(1))
        log_y = torch.log_softmax(self.p_y, 0)[label].unsqueeze(1).expand(-1, k)
        log_p = [ops.gaussian_log_prob(z), ops.gaussian_log_prob(a, *self.p_a(both)), log_y]
        return log_px, *log_p, log_q, ops.gaussian_kl(mean, log_var)

    def draw(self, encoding, x, k, noise, y=None):
        a, log_qa = noise.gaussian(encoding["mean"], encoding["log_var"], k, stream=0)
        if y is not None:
            log_px, log_pz, log_pa, log_py, log_qz, kl = self._given(a, x, k, y, noise)
            return Terms(log_px, {"a": log_pa, "z": log_pz, "y": log_py}, {"a": log_qa, "z": log_qz}, {"z": kl})
        labels = [torch.full((len(x),), c, dtype=torch.int64, device=x.device) for c in range(Y)]
        per_label = zip(*(self._given(a, x, k, label, noise) for label in labels), strict=True)
        log_px, log_pz, log_pa, log_py, log_qz, kl = (torch.stack(term, -1) for term in per_label)
        log_qy = torch.log_softmax(self.q_y(torch.cat([a, x.unsqueeze(1).expand(-1, k, -1)], -1)), -1)
        log_q = {"a": log_qa.unsqueeze(-1), "z": log_qz}
        return Terms(log_px, {"a": log_pa, "z": log_pz, "y": log_py}, log_q, {"z": kl}, log_qy)


@pytest.fixture
def model() -> Labelled:
    torch.manual_seed(1)
    return Labelled().double()


def all_labels(rows: int) -> list[torch.Tensor]:
    return [torch.full((rows,), c) for c in range(Y)]


def test_the_bound_without_labels_is_the_mean_bound_with_them_plus_the_entropy(model):
    """Eq. 4.20: U = E_a[Σ_y q(y|a,x) (L(x,y,a) − log q(y|a,x))]; the labels share their noise, so it holds draw by draw."""
    x = binary(5, D, dtype=torch.float64)
    log_qy = model.draw(model.encode(x), x, 1, Noise(3)).log_qy.squeeze(1)
    per_label = torch.stack([model.elbo(x, y, seed=3).bound for y in all_labels(5)], -1)
    elbo = model.elbo(x, seed=3)
    torch.testing.assert_close(elbo.bound, (log_qy.exp() * (per_label - log_qy)).sum(-1))
    assert set(elbo.kl) == {"a", "z", "y"} and (elbo.kl["y"] >= 0).all()


def test_an_observed_label_pays_its_prior(model):
    """Eq. 4.9 keeps log p(y), and its parameters learn."""
    x, y = binary(5, D, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    elbo = model.elbo(x, y)
    torch.testing.assert_close(elbo.kl["y"], -torch.log_softmax(model.p_y, 0)[y])
    elbo.bound.sum().backward()
    assert (model.p_y.grad != 0).all()
    sampled, _ = Objective(m=20000, analytic_kl=False).loss(model, x, y, 1.0, seed=2)
    torch.testing.assert_close(sampled, -model.log_weights(x, 20000, y, seed=2).mean())


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_weights_over_a_label_are_the_sum_of_those_of_each(model, beta):
    x, encoding = binary(5, D, dtype=torch.float64), model.encode(binary(5, D, dtype=torch.float64))
    terms = model.draw(encoding, x, 6, Noise(2))
    parts = [model.draw(encoding, x, 6, Noise(2), y).log_weights(beta) for y in all_labels(5)]
    # the label's own ratio: β log p(y) is in the parts, (1 − β) log q(y) is not
    expected = torch.logsumexp(torch.stack(parts, -1) + (1.0 - beta) * terms.log_qy, -1)
    assert expected.shape == (5, 6)
    torch.testing.assert_close(terms.log_weights(beta), expected)
    if beta == 1.0:
        torch.testing.assert_close(model.log_weights(x, 6, seed=2), expected)


@pytest.mark.parametrize("objective", [Objective(), Objective(k=3, m=2), Objective(free_bits=0.1)])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_objectives_train_all_that_takes_part(model, objective, labelled):
    x, y = binary(5, D, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    loss, log = objective.loss(model, x, y if labelled else None, 0.5, seed=1)
    assert loss.shape == () and {"kl_a", "kl_z", "kl_y"} <= log.keys()
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == ({"q_y.weight", "q_y.bias"} if labelled else set())


def test_log_likelihood_with_a_label_and_over_all(model):
    x = binary(5, D, dtype=torch.float64)
    joint = torch.stack([evaluate.log_likelihood(model, x, 700, y=y).log_px for y in all_labels(5)], -1)
    over = evaluate.log_likelihood(model, x, 700)
    torch.testing.assert_close(over.log_px, torch.logsumexp(joint, -1), atol=1e-9, rtol=0)
    direct = torch.logsumexp(model.log_weights(x, 700), 1) - math.log(700)
    torch.testing.assert_close(over.log_px, direct, atol=1e-9, rtol=0)
    mixed = torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(
        evaluate.log_likelihood(model, x, 700, y=mixed).log_px, joint[torch.arange(5), mixed], atol=1e-9, rtol=0
    )


def test_a_weight_that_is_not_finite_names_the_label_term(model):
    model.q_y.bias.data[0] = math.nan
    model.p_y.data[0] = math.nan
    with pytest.raises(InputError, match=r"row 0 .*log p\(y\) and log q\(y\)"):
        evaluate.log_likelihood(model, binary(5, D, dtype=torch.float64), 10)


METHODS = {
    "log_weights": lambda model, x, y: model.log_weights(x, 2, y),
    "elbo": lambda model, x, y: model.elbo(x, y),
    "reconstruct": lambda model, x, y: model.reconstruct(x, y),
    "log_likelihood": lambda model, x, y: evaluate.log_likelihood(model, x, 2, y=y),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_wrong_data_in_one_sentence(method, model):
    x, labels = binary(5, D, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    for wrong, y, told in [
        (x[0], None, r"x must be floating, of shape \[N, 12\]; got torch.float64 \[12\]"),
        (x[:, :11], None, r"x must be floating, of shape \[N, 12\]; got torch.float64 \[5, 11\]"),
        (x.bool(), None, r"x must be floating"),
        (x.float(), None, r"x must be torch.float64 on cpu, like the model; got torch.float32 on cpu"),
        (x.to("meta"), None, r"x must be torch.float64 on cpu, like the model; got torch.float64 on meta"),
        (x, labels[:4], r"y must be int64 \[5\] on cpu; got torch.int64 \[4\]"),
        (x, labels.float(), r"y must be int64 \[5\] on cpu; got torch.float32"),
        (x, labels.to("meta"), r"y must be int64 \[5\] on cpu; got torch.int64 \[5\] on meta"),
    ]:
        with pytest.raises(InputError, match=rf"^{method}: {told}"):
            METHODS[method](model, wrong, y)
    unlabelled = models.create("vae", x_dim=D, latent=(2,), hidden=((4,),)).double()
    with pytest.raises(InputError, match=rf"^{method}: y must be None, because VAE takes no labels"):
        METHODS[method](unlabelled, x, labels)


def test_sample_refuses_in_one_sentence(model):
    with pytest.raises(InputError, match="sample: n must be at least 0; got -1"):
        model.sample(-1)
    with pytest.raises(InputError, match=r"sample: y must be int64 \[3\]"):
        model.sample(3, torch.zeros(2, dtype=torch.int64))
    assert models.create("vae").sample(0).shape == (0, 784)


def test_autocast_takes_data_of_another_dtype():
    torch.manual_seed(0)
    unlabelled, x = models.create("vae", x_dim=D, latent=(2,), hidden=((4,),)), binary(5, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert unlabelled.elbo(x.bfloat16()).bound.isfinite().all()


def test_what_a_model_lacks_is_named(model):
    for call in (lambda: model.sample(2), lambda: model.start_at(torch.zeros(D)), lambda: model.latent_means({})):
        with pytest.raises(TypeError, match="Labelled does not define"):
            call()

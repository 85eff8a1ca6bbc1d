"""Tests of the protocol for labels, observed or summed over, on the smallest model that has one."""

import math

import pytest
import torch
from support.vae import binary

from dgmfast import evaluate, models
from dgmfast.errors import InputError
from dgmfast.objectives import Objective

D, Y, Z, A = 12, 3, 4, 2


@pytest.fixture
def model() -> models.ADGM:
    torch.manual_seed(1)
    return models.ADGM(D, Y, latent=Z, auxiliary=A, hidden=(7, 6), activation="tanh", class_prior="learned").double()


def test_an_observed_label_pays_its_prior(model):
    """The bound must contain log p(y) (eq. 4.9), and the parameters of p(y) must get a gradient."""
    x, y = binary(5, D, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    elbo = model.elbo(x, y)
    torch.testing.assert_close(elbo.kl["y"], -model.log_py()[y])
    elbo.bound.sum().backward()
    assert (model.prior_logits.grad != 0).all()
    sampled, _ = Objective(m=20000, analytic_kl=False).loss(model, x, y, 1.0, seed=2)
    torch.testing.assert_close(sampled, -model.log_weights(x, 20000, y, seed=2).mean())


def test_a_weight_that_is_not_finite_names_the_label_term(model):
    model.q_y.logits.bias.data[0] = math.nan
    model.prior_logits.data[0] = math.nan
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


def test_what_a_model_lacks_is_named():
    class Empty(models.GenerativeModel):
        x_dim = D

    empty = Empty()
    empty.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    for call in (lambda: empty.sample(2), lambda: empty.elbo(binary(5, D, dtype=torch.float64))):
        with pytest.raises(TypeError, match="Empty does not define"):
            call()

"""The case `end_to_end`: training steps of whole scripts, each as users have it and with its formulas swapped for our ops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributions import normal

from bench.cases.image_steps import images
from bench.cases.op_cases import Context
from bench.cases.steps import Step, checker, step_groups
from bench.harness import Check, Contender, Outputs, Settings, measure
from bench.rivals import end_to_end as scripts
from bench.rivals.end_to_end import ScriptVAE, pythae_loss
from bench.store import Row
from dgmfast import ops, reference
from dgmfast.ops import gaussian

Loss = Callable[[Any, Tensor], Tensor]  # (model, x) -> loss
Prepared = tuple[list[Contender], Check]


@contextmanager
def fed(eps: Tensor) -> Iterator[None]:
    """Replaces every source of noise by `eps` [B, K, D], the noise that our op draws with seed 0.

    The sources are torch.randn_like, the noise of torch.distributions.Normal, and the seed that our op draws.
    """
    with (
        patch.object(torch, "randn_like", lambda like: eps.view(like.shape)),
        patch.object(normal, "_standard_normal", lambda shape, dtype, device: eps.view(shape)),
        patch.object(gaussian, "seed_or_drawn", lambda *_: 0),
    ):
        yield


def training_step(model: nn.Module, x: Tensor, eps: Tensor, loss: Loss, compiled: bool = False) -> Step:
    """Returns a step of a copy of the model. The first call gets the noise `eps`; every later call draws its own."""
    own = copy.deepcopy(model)
    parameters = list(own.parameters())
    call = torch.compile(loss, dynamic=False) if compiled else loss

    def at(count: int) -> Tensor:
        if count == 0:
            with fed(eps):
                return call(own, x)
        if count == 1 and compiled:
            torch._dynamo.reset()  # what was compiled for the first call has `eps` in it
        return call(own, x)

    return Step(parameters, at, lambda: [p.grad for p in parameters if p.grad is not None])


def swapped_loss(model: ScriptVAE, x: Tensor) -> Tensor:
    """Returns the loss of both VAE scripts on our ops, in the fastest form that we found; z is drawn as in the script."""
    mean, log_var = model.encode(x)
    logits = model.logits(model.reparameterise(mean, log_var))
    return (ops.gaussian_kl(mean, log_var) - ops.bernoulli_log_prob(logits, x)).sum()


def fast_iwae(plain: Any) -> Any:
    """Returns pythae's IWAE with the forward of examples/pythae_swap.md and the weights of `plain`."""
    from pythae.models import IWAE
    from pythae.models.base.base_utils import ModelOutput

    class FastIWAE(IWAE):  # type: ignore[misc]
        def forward(self, inputs: Any, **kwargs: Any) -> Any:
            x = inputs["data"].flatten(1)
            encoded = self.encoder(inputs["data"])
            mean, log_var = encoded.embedding, encoded.log_covariance
            z, log_q = ops.gaussian_sample(mean, log_var, k=self.n_samples)
            hidden, (last, _) = self.decoder.layers
            log_px = ops.linear_bernoulli_log_prob(hidden(z), last.weight, last.bias, x)
            log_pz = ops.gaussian_log_prob(z)
            bound = ops.importance_bound(log_px + log_pz - log_q)
            return ModelOutput(loss=-bound.mean(), recon_loss=-log_px.mean(), reg_loss=(log_q - log_pz).mean(), z=z[:, 0])

    fast = FastIWAE(plain.model_config).to(next(plain.parameters()).dtype)
    fast.load_state_dict(plain.state_dict())
    return fast


def noise(rows: int, k: int, latent: int) -> Tensor:
    """Returns the noise that our op draws with seed 0, [rows, k, latent], in float64."""
    return reference.standard_normal(rows, k, latent, 0)


def vae_float64(model: ScriptVAE, x: Tensor, eps: Tensor) -> Outputs:
    """Returns the loss and the gradients of the VAE in float64."""
    exact, x = copy.deepcopy(model).double(), x.double()
    mean, log_var = exact.encode(x)
    logits = exact.logits(mean + torch.exp(0.5 * log_var) * eps.squeeze(1))
    loss = (reference.gaussian_kl(mean, log_var) - reference.bernoulli_log_prob(logits, x)).sum()
    return (loss.detach(), *torch.autograd.grad(loss, list(exact.parameters())))


def iwae_float64(model: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, Outputs]:
    """Returns log w [B, K] of pythae's IWAE in float64, and −L_K with its gradients."""
    exact, x = copy.deepcopy(model).double(), x.double()
    encoded = exact.encoder(x)
    mean, log_var = encoded["embedding"].unsqueeze(1), encoded["log_covariance"].unsqueeze(1)
    z = mean + torch.exp(0.5 * log_var) * eps
    hidden, (last, _) = exact.decoder.layers
    log_w = reference.bernoulli_log_prob(last(hidden(z)), x.unsqueeze(1)) + reference.gaussian_log_prob(z)
    log_w = log_w - reference.gaussian_log_prob(z, mean, log_var)
    loss = -reference.importance_bound(log_w).mean()
    return log_w.detach(), (loss.detach(), *torch.autograd.grad(loss, list(exact.parameters())))


def pythae_bound(model: Any, x: Tensor, eps: Tensor) -> Tensor:
    """Returns the mean L_K from the log w that pythae's IWAE computes for the noise `eps`."""
    found: list[Tensor] = []
    original = model.loss_function

    def record(*arguments: Tensor) -> Any:
        found.append(scripts.pythae_log_weights(*arguments))
        return original(*arguments)

    with fed(eps), torch.no_grad(), patch.object(model, "loss_function", record):
        model({"data": x})
    [log_w] = found
    return (torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])).mean()


def pythae_checker(model: Any, x: Tensor, eps: Tensor, log_w: Tensor, truth: Outputs) -> Check:
    """Returns the check of pythae's step: its loss −Σ w̃ log w, the gradients, which are those of −L_K, and L_K from its log w."""
    loss = -(torch.softmax(log_w, 1) * log_w).sum(1).mean()
    bound, same = pythae_bound(model, x, eps), checker((loss, *truth[1:], -truth[0]))
    return lambda inputs, outputs: same(inputs, (*outputs, bound))


def vae_work(rivals: dict[str, Loss], original: Loss, context: Context) -> Prepared:
    """Returns ours, the rivals and the compiled original of one VAE script, and their check."""
    model, x = seeded(ScriptVAE), images(8 if context.quick else 128)
    exact = noise(len(x), 1, model.mean.out_features)
    step = partial(training_step, model, x, exact.float())
    contenders = [Contender(name, step(loss)) for name, loss in {"ours": swapped_loss, **rivals}.items()]
    if context.compile:
        contenders.append(Contender("compile", step(original, compiled=True)))
    return contenders, checker(vae_float64(model, x, exact))


def script_work(context: Context) -> Prepared:
    rivals: dict[str, Loss] = {"eager": scripts.script_loss, "eager, from logits": scripts.logits_loss}
    return vae_work(rivals, scripts.script_loss, context)


def distributions_work(context: Context) -> Prepared:
    return vae_work({"torch.distributions": scripts.distributions_loss}, scripts.distributions_loss, context)


def pythae_work(k: int, context: Context) -> Prepared:
    """Returns pythae's IWAE, the subclass on our ops and the compiled original, or a contender that says what is missing."""
    try:
        plain = seeded(partial(scripts.pythae_iwae, k))
    except ImportError:
        return [Contender("pythae", None, "not installed: pip install pythae")], checker(())
    x = images(8 if context.quick else 100)
    exact = noise(len(x), k, plain.latent_dim)
    eps = exact.float()
    log_w, truth = iwae_float64(plain, x, exact)
    check = pythae_checker(plain, x, eps, log_w, truth)
    contenders = [Contender("ours", training_step(fast_iwae(plain), x, eps, pythae_loss))]
    contenders.append(Contender("pythae", training_step(plain, x, eps, pythae_loss), check=check))
    if context.compile:
        compiled = training_step(plain, x, eps, pythae_loss, compiled=True)
        contenders.append(Contender("compile", compiled, check=check))
    return contenders, checker(truth)


def seeded(make: Callable[[], Any]) -> Any:
    """Returns a model whose weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


SCRIPTS: dict[str, Callable[[Context], Prepared]] = {
    "vae-script": script_work,
    "vae-distributions": distributions_work,
    "pythae-iwae-5": partial(pythae_work, 5),
    "pythae-iwae-50": partial(pythae_work, 50),
}


@dataclass(frozen=True)
class EndToEndCase:
    """Times a training step of one script: as users have it, with our ops, and compiled."""

    script: str
    name: str = "end_to_end"

    @property
    def label(self) -> str:
        return self.script

    def groups(self, context: Context) -> list[Row]:
        return step_groups(context, self.name, [self.script])

    def run(self, context: Context) -> Iterator[list[Row]]:
        torch._dynamo.reset()
        contenders, check = SCRIPTS[self.script](context)
        settings = context.settings if context.quick else Settings(seconds=3.0, sample_seconds=0.0)
        rows = measure(contenders, [()], check, settings)
        for columns in self.groups(context):
            yield [columns | row for row in rows]

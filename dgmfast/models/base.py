"""The one protocol that every model implements.

A model is a joint p(x, latents[, y]) with an inference model q(latents[, y] | x). It splits its work in two:

- `encode(x, y)` computes, once per x, all that depends on x (and y) alone, as a dict of tensors with leading dimension B;
- `draw(encoding, x, k, noise, y)` draws k joint samples of the latents for each row and returns the `Terms` of the bounds.

Everything else (importance weights, ELBO, streaming log-likelihood, training) is written once, on those two.
Latents may form a hierarchy (each draws from its own noise stream), an observed label y enters both calls, and a label
that is summed over is a third dimension of the terms (see `Terms`). Encoders see x flat, [B, D], and reshape it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.errors import InputError

Encoding = Mapping[str, Tensor]  # each [B, ...]


@dataclass(frozen=True)
class Noise:
    """Where the noise of a draw comes from: row i, sample j, stream s always give the same numbers under one seed.

    seed: an int, or a 0-dim int64 tensor on the model's device. first_row, first_sample: the coordinates of the first draw.
    """

    seed: int | Tensor
    first_row: int = 0
    first_sample: int = 0

    def gaussian(self, mean: Tensor, log_var: Tensor, k: int, stream: int) -> tuple[Tensor, Tensor]:
        """z ~ N(mean, e^log_var) and log q(z): k draws of each row of [B, D], or one (k = 1) of each of [B, K, D]."""
        return ops.gaussian_sample(
            mean, log_var, k, seed=self.seed, stream=stream, first_row=self.first_row, first_sample=self.first_sample
        )


@dataclass
class Terms:
    """The terms of the bounds for k joint draws of the latents, in nats, each [B, k].

    log_p and log_q hold one entry per latent, log p(latent | parents) and log q(latent | parents, x). kl holds the analytic
    KL(q ‖ p) of those latents whose conditional KL is exact: under q, the parents of their prior do not depend on them.
    An observed label has an entry "y" in log_p alone. A label that is summed over has one there too, and log_qy, the normalised
    log q(y | latents, x) [B, k, Y]; all terms then are [B, k, Y], or [B, k, 1] where they do not depend on y.
    """

    log_px: Tensor
    log_p: dict[str, Tensor] = field(default_factory=dict)
    log_q: dict[str, Tensor] = field(default_factory=dict)
    kl: dict[str, Tensor] = field(default_factory=dict)
    log_qy: Tensor | None = None

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """log p(x|latents) + β (log p(latents) − log q(latents)): [B, k] (eq. 3.31; β: eq. 5.5).

        Over a label, log Σ_y q(y|·) w_y^β, which needs no sample of it: at β = 1, q(y|·) cancels.
        """
        prior = sum(self.log_p.values()) - sum(self.log_q.values())
        log_w = self.log_px + (prior if beta == 1.0 else beta * prior)
        if self.log_qy is None:
            return log_w
        return torch.logsumexp(log_w if beta == 1.0 else log_w + (1.0 - beta) * self.log_qy, -1)

    def reconstruction(self) -> Tensor:
        """log p(x|latents), [B, k]; its mean under q(y|·) where a label is summed over."""
        return self._over_labels(self.log_px)

    def kl_terms(self, analytic: bool = True) -> dict[str, Tensor]:
        """KL of each latent, [B, k]: analytic where exact and asked for, else the sample's log q − log p, maybe negative.

        An observed label costs −log p(y|·); one that is summed over KL(q(y|·) ‖ p(y|·)) (eqs 4.7 and 4.9).
        """
        log_q = self.log_q if self.log_qy is None else {**self.log_q, "y": self.log_qy}
        terms = {}
        for name, log_p in self.log_p.items():
            if analytic and name in self.kl:
                terms[name] = self._over_labels(self.kl[name])
            else:
                terms[name] = self._over_labels(log_q[name] - log_p if name in log_q else -log_p)
        return terms

    def _over_labels(self, term: Tensor) -> Tensor:
        return term if self.log_qy is None else (self.log_qy.exp() * term).sum(-1)


@dataclass
class Elbo:
    """The evidence lower bound of each row, [B] in nats, and its terms: bound = reconstruction − β Σ kl."""

    bound: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]


class GenerativeModel(nn.Module):
    """Base of all models; subclasses give `encode`, `draw`, `prior`, `posterior_mean`, `latent_means` and `start_at`.

    num_classes: Y, where the model has a label. `log_weights`, `elbo`, `sample` and `reconstruct` raise InputError for an x that
    is not [B, x_dim] of the parameters' dtype and device, and for a y that is not [B] int64 or that the model does not take.
    """

    x_dim: int
    num_classes: int | None = None

    def encode(self, x: Tensor, y: Tensor | None = None) -> Encoding:
        """All that depends on x [B, D] (and y [B]) alone, computed once."""
        raise _abstract(self, "encode")

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Tensor | None = None) -> Terms:
        """k joint samples of the latents per row, and the terms of the bounds at them."""
        raise _abstract(self, "draw")

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """The mean of p(x | latents), [n, D], with the latents drawn from the prior."""
        raise _abstract(self, "prior")

    def posterior_mean(self, encoding: Encoding, noise: Noise, y: Tensor | None = None) -> Tensor:
        """The mean of p(x | latents), [B, D], with the latents drawn from q."""
        raise _abstract(self, "posterior_mean")

    def latent_means(self, encoding: Encoding) -> dict[str, Tensor]:
        """The mean of q for each latent, [B, D_i], each layer given the mean of the one below: for figures."""
        raise _abstract(self, "latent_means")

    def start_at(self, mean: Tensor) -> None:
        """Let the untrained p(x | latents) have the data's mean [D]."""
        raise _abstract(self, "start_at")

    def check(self, caller: str, x: Tensor, y: Tensor | None) -> None:
        """Raise InputError, beginning with `caller`, unless the model takes x and y."""
        if x.dim() != 2 or x.shape[1] != self.x_dim or not x.is_floating_point():
            raise InputError(f"{caller}: x must be floating, of shape [N, {self.x_dim}]; got {x.dtype} {list(x.shape)}")
        parameter = next(self.parameters())
        if x.device != parameter.device or (x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise InputError(
                f"{caller}: x must be {parameter.dtype} on {parameter.device}, like the model; got {x.dtype} on {x.device}"
            )
        self._check_labels(caller, y, len(x), x.device)

    def _check_labels(self, caller: str, y: Tensor | None, n: int, device: torch.device) -> None:
        if y is None:
            return
        if self.num_classes is None:
            raise InputError(f"{caller}: y must be None, because {type(self).__name__} takes no labels; got {list(y.shape)}")
        if y.shape != (n,) or y.dtype != torch.int64 or y.device != device:
            raise InputError(f"{caller}: y must be int64 [{n}] on {device}; got {y.dtype} {list(y.shape)} on {y.device}")

    def log_weights(
        self, x: Tensor, k: int = 1, y: Tensor | None = None, seed: int | Tensor = 0, first_row: int = 0, first_sample: int = 0
    ) -> Tensor:
        """log p(x, latents) − log q(latents | x) for k draws of the latents: [B, D] -> [B, k] nats (eq. 3.31)."""
        self.check("log_weights", x, y)
        noise = Noise(seed, first_row, first_sample)
        return self.draw(self.encode(x, y), x, k, noise, y).log_weights()

    def elbo(self, x: Tensor, y: Tensor | None = None, beta: float = 1.0, k: int = 1, seed: int | Tensor = 0) -> Elbo:
        """The bound of each row and its terms, [B] nats, averaged over k draws (eqs 3.11, 3.30; β: eq. 5.5)."""
        self.check("elbo", x, y)
        terms = self.draw(self.encode(x, y), x, k, Noise(seed), y)
        kl = {name: value.mean(1) for name, value in terms.kl_terms().items()}
        reconstruction = terms.reconstruction().mean(1)
        return Elbo(reconstruction - beta * sum(kl.values()), reconstruction, kl)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, seed: int | Tensor = 0) -> Tensor:
        """n draws from the model: the mean of p(x | latents), [n, D]."""
        if n < 0:
            raise InputError(f"sample: n must be at least 0; got {n}")
        self._check_labels("sample", y, n, next(self.parameters()).device)
        return self.prior(n, Noise(seed), y)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None, seed: int | Tensor = 0) -> Tensor:
        """The mean of p(x | latents), [B, D], with the latents drawn once from q(latents | x)."""
        self.check("reconstruct", x, y)
        return self.posterior_mean(self.encode(x, y), Noise(seed), y)


def _abstract(model: GenerativeModel, method: str) -> TypeError:
    return TypeError(f"{type(model).__name__} does not define {method}, which every model must")

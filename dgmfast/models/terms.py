"""What a draw of a model returns: its latents, and the terms of the bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from dgmfast import ops
from dgmfast.models.labels import LabelEstimator, Labels
from dgmfast.models.noise import Gaussian

Encoding = Mapping[str, Tensor]  # each [B, ...]
Label = Tensor | LabelEstimator | None


@dataclass
class Latent:
    """One latent of a draw: its sample z [B, k, D] with log q(z|·) [B, k], and the Gaussians q and p that it has there.

    p: None for N(0, I). exact: whether KL(q ‖ p) is this latent's term of the bound, because under q the parents of p do not
    depend on z. Where a label is summed over, all may be labelled (see `labels`).
    """

    z: Tensor
    log_q: Tensor
    q: Gaussian
    p: Gaussian | None = None
    exact: bool = False

    def log_p(self) -> Tensor:
        """log p(z | parents), in nats."""
        return ops.gaussian_log_prob(self.z, *(self.p or ()))

    def kl(self, analytic: bool = True) -> Tensor:
        """KL(q ‖ p) where exact and asked for, else the sample's log q − log p, maybe negative."""
        return ops.gaussian_kl(*self.q, *(self.p or ())) if self.exact and analytic else self.log_q - self.log_p()

    def kl_units(self) -> Tensor:
        """The same for each unit, [..., D], of a draw that does not sum over a label."""
        z, q = self.z.unsqueeze(-1), tuple(t.unsqueeze(-1) for t in self.q)
        p = tuple(t.unsqueeze(-1) for t in self.p or ())
        return ops.gaussian_kl(*q, *p) if self.exact else ops.gaussian_log_prob(z, *q) - ops.gaussian_log_prob(z, *p)


@dataclass
class Terms:
    """The terms of the bounds for k joint draws of the latents, in nats.

    decoding: what the output distribution p(x|·) takes, or a function that makes it, where log_px could do without (nn.decode).
    log_px: log p(x | latents), [B, k], labelled where a label is summed over. labels, log_py: the model's label, if it has one,
    and log p(y|·) of what it is. cross_entropy: −log of the classifiers' probabilities of an observed label, [B, k].
    """

    decoding: Tensor | Callable[[], Tensor]
    log_px: Tensor
    latents: dict[str, Latent] = field(default_factory=dict)
    labels: Labels | None = None
    log_py: Tensor | None = None
    cross_entropy: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def decoded(self) -> Tensor:
        """What the output distribution p(x|·) takes."""
        return self.decoding if isinstance(self.decoding, Tensor) else self.decoding()

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """log p(x|latents) + β (log p(latents) − log q(latents)): [B, k] (eq. 3.31; β: eq. 5.5).

        Over a label, log Σ_y q(y|·) w_y^β, which needs no sample of it: at β = 1, q(y|·) cancels.
        """
        prior = sum(self._term(latent.log_p()) - self._term(latent.log_q) for latent in self.latents.values())
        log_w = self.log_px + (prior if beta == 1.0 else beta * prior)
        return log_w if self.labels is None or self.log_py is None else self.labels.log_weights(log_w, self.log_py, beta)

    def bound(self, beta: float = 1.0, analytic: bool = True) -> Tensor:
        """log p(x|latents) − β Σ KL, [B, k]: the ELBO's sample, its mean over a label taken by the op (eqs 3.30, 4.7, 4.20)."""
        kl = sum(self._term(latent.kl(analytic)) for latent in self.latents.values())
        value = self.log_px - (kl if beta == 1.0 else beta * kl)
        return value if self.labels is None or self.log_py is None else self.labels.bound(value, self.log_py, beta)

    def reconstruction(self) -> Tensor:
        """log p(x|latents), [B, k]; its mean under q(y|·) where a label is summed over."""
        return self._mean(self.log_px)

    def kl_terms(self, analytic: bool = True) -> dict[str, Tensor]:
        """KL of each latent, [B, k] or [B, 1]: analytic where exact and asked for.

        An observed label costs −log p(y|·); one that is summed over KL(q(y|·) ‖ p(y|·)) (eqs 4.7 and 4.9).
        """
        terms = {name: self._mean(latent.kl(analytic)) for name, latent in self.latents.items()}
        return terms if self.labels is None or self.log_py is None else {**terms, "y": self.labels.kl(self.log_py)}

    def per_label(self) -> Tensor:
        """L(x, y) of every label, [B, k, Y], where the label was summed over exactly (eq. 4.9)."""
        assert self.log_py is not None
        kl = sum(self._term(latent.kl()) for latent in self.latents.values())
        return self.log_px - kl + self.log_py

    def _term(self, t: Tensor) -> Tensor:
        return t if self.labels is None else self.labels.expand_term(t)

    def _mean(self, t: Tensor) -> Tensor:
        return t if self.labels is None else self.labels.mean(self.labels.expand_term(t))


@dataclass
class Elbo:
    """The evidence lower bound of each row, [B] in nats, and its terms: bound = reconstruction − β Σ kl."""

    bound: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]

"""The result of `draw`: the latents, and the terms of the bounds."""

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
    """One latent of a draw: its sample z, log q(z|·), and the Gaussians q and p at that sample.

    All tensors are labelled if a label is summed over (see `labels`).

    Args:
        z: [B, k, D].
        log_q: [B, k], in nats.
        q: (mean, log_var) of q(z|·).
        p: (mean, log_var) of p(z|·), or None for N(0, I).
        exact: True if KL(q ‖ p) may replace log q − log p in the bound, because under q the parents of p do not depend on z.
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
        """KL(q ‖ p) if it is exact and `analytic` is true, else log q − log p at the sample, in nats.

        The second form may be negative.
        """
        return ops.gaussian_kl(*self.q, *(self.p or ())) if self.exact and analytic else self.log_q - self.log_p()

    def kl_units(self) -> Tensor:
        """The KL of each unit, [..., D] in nats, for a draw that does not sum over a label."""
        z, q = self.z.unsqueeze(-1), tuple(t.unsqueeze(-1) for t in self.q)
        p = tuple(t.unsqueeze(-1) for t in self.p or ())
        return ops.gaussian_kl(*q, *p) if self.exact else ops.gaussian_log_prob(z, *q) - ops.gaussian_log_prob(z, *p)


@dataclass
class Terms:
    """The terms of the bounds for k joint samples of the latents, in nats.

    Args:
        decoding: The input of the output distribution p(x|·), or a function that computes it if log_px did not need it (see
            nn.decode).
        log_px: log p(x | latents), [B, k], or labelled if a label is summed over.
        latents: The latents by name.
        labels: The label of the draw, or None if the model has no label.
        log_py: log p(y|·) of that label.
        cross_entropy: −log of each classifier's probability of an observed label, [B, k].
    """

    decoding: Tensor | Callable[[], Tensor]
    log_px: Tensor
    latents: dict[str, Latent] = field(default_factory=dict)
    labels: Labels | None = None
    log_py: Tensor | None = None
    cross_entropy: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def decoded(self) -> Tensor:
        """The input of the output distribution p(x|·), computed on first use."""
        return self.decoding if isinstance(self.decoding, Tensor) else self.decoding()

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """log p(x|latents) + β (log p(latents) − log q(latents)): [B, k], in nats (eq. 3.31; β: eq. 5.5).

        If a label is summed over, the result is log Σ_y q(y|·) w_y^β, where w_y is the weight with label y. It needs no sample of
        the label; at β = 1, q(y|·) cancels.
        """
        prior = sum(self._term(latent.log_p()) - self._term(latent.log_q) for latent in self.latents.values())
        log_w = self.log_px + (prior if beta == 1.0 else beta * prior)
        return log_w if self.labels is None or self.log_py is None else self.labels.log_weights(log_w, self.log_py, beta)

    def bound(self, beta: float = 1.0, analytic: bool = True) -> Tensor:
        """The ELBO of each sample, log p(x|latents) − β Σ KL, [B, k] in nats (eqs 3.30, 4.7 and 4.20).

        If a label is summed over, the result is the mean over the label, which the op marginalize_labels computes.
        """
        kl = sum(self._term(latent.kl(analytic)) for latent in self.latents.values())
        value = self.log_px - (kl if beta == 1.0 else beta * kl)
        return value if self.labels is None or self.log_py is None else self.labels.bound(value, self.log_py, beta)

    def reconstruction(self) -> Tensor:
        """log p(x|latents), [B, k]. If a label is summed over, its mean under q(y|·)."""
        return self._mean(self.log_px)

    def kl_terms(self, analytic: bool = True) -> dict[str, Tensor]:
        """KL of each latent, [B, k] or [B, 1], in nats. The KL is analytic if it is exact and `analytic` is true.

        The entry "y" is −log p(y|·) if the label is observed, and KL(q(y|·) ‖ p(y|·)) if it is summed over (eqs 4.7 and 4.9).
        """
        terms = {name: self._mean(latent.kl(analytic)) for name, latent in self.latents.items()}
        return terms if self.labels is None or self.log_py is None else {**terms, "y": self.labels.kl(self.log_py)}

    def per_label(self) -> Tensor:
        """L(x, y) for every label y, [B, k, Y] in nats, if the label is summed over exactly (eq. 4.9)."""
        assert self.log_py is not None
        kl = sum(self._term(latent.kl()) for latent in self.latents.values())
        return self.log_px - kl + self.log_py

    def _term(self, t: Tensor) -> Tensor:
        return t if self.labels is None else self.labels.expand_term(t)

    def _mean(self, t: Tensor) -> Tensor:
        return t if self.labels is None else self.labels.mean(self.labels.expand_term(t))


@dataclass
class Elbo:
    """The evidence lower bound of each row and its terms, [B] in nats: bound = reconstruction − β Σ kl."""

    bound: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]

"""Training objectives: ELBO, importance-weighted bound, warm-up and free bits. Losses are to be minimised, in nats per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models.base import GenerativeModel, Noise, Terms


@dataclass(frozen=True)
class Objective:
    """What is maximised, averaged over the rows.

    k: importance samples inside the logarithm (eq. 3.31); 1 gives the ELBO, with the KL analytic where that is exact.
    m: Monte-Carlo repetitions outside it. warmup_epochs, warmup_start: β grows linearly from warmup_start to 1 over the first
    epochs (eq. 5.5). free_bits: nats that each latent's KL, averaged over the batch, may have at no cost (Kingma et al. 2016;
    needs k = 1).
    """

    k: int = 1
    m: int = 1
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    free_bits: float = 0.0
    analytic_kl: bool = True

    def __post_init__(self) -> None:
        for name in ("k", "m"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.warmup_epochs < 0 or not 0.0 <= self.warmup_start <= 1.0:
            raise InputError(
                f"warmup_epochs must be at least 0 and warmup_start in [0, 1]; got {self.warmup_epochs} and {self.warmup_start}"
            )
        if not self.free_bits >= 0.0 or (self.free_bits > 0.0 and self.k > 1):
            raise InputError(f"free_bits must be at least 0, and needs k = 1; got {self.free_bits} with k = {self.k}")

    def beta(self, epoch: float) -> float:
        """β in epoch `epoch` (0-based)."""
        if self.warmup_epochs == 0:
            return 1.0
        return min(1.0, self.warmup_start + (1.0 - self.warmup_start) * epoch / self.warmup_epochs)

    def loss(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None, beta: float, seed: int | Tensor, first_row: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the batch (a scalar) and its terms for the log, detached scalars in nats per row.

        The noise of row i is that of row first_row + i of the whole batch, so that a batch may be split over processes.
        """
        terms = model.draw(model.encode(x, y), x, self.m * self.k, Noise(seed, first_row), y)
        kl = {name: value.mean() for name, value in terms.kl_terms(self.analytic_kl).items()}
        loss = self._elbo_loss(terms, kl, beta) if self.k == 1 else -self._importance_bound(terms, beta).mean()
        with torch.no_grad():
            reconstruction = terms.reconstruction().mean()
            log = {"elbo": reconstruction - sum(kl.values()), "reconstruction": reconstruction}
            log |= {f"kl_{name}": value.detach() for name, value in kl.items()}
        return loss, log

    def _elbo_loss(self, terms: Terms, kl: dict[str, Tensor], beta: float) -> Tensor:
        floored = (value.clamp(min=self.free_bits) if self.free_bits else value for value in kl.values())
        return beta * sum(floored) - terms.reconstruction().mean()

    def _importance_bound(self, terms: Terms, beta: float) -> Tensor:
        log_w = terms.log_weights(beta)
        return ops.importance_bound(log_w.unflatten(1, (self.m, self.k))).mean(1)

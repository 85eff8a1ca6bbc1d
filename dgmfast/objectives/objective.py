"""Training objectives: the ELBO, the importance-weighted bound, the semi-supervised loss, KL warm-up and free bits.

Losses are minimised, in nats per row.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.models import (
    Encoding,
    ExactSum,
    GenerativeModel,
    GumbelSoftmax,
    Label,
    LabelEstimator,
    Noise,
    Seed,
    SparseSum,
    Terms,
)
from dgmfast.nn import frozen_statistics, normalises
from dgmfast.objectives.estimators import ESTIMATORS, EncodedBatch, ImportanceWeighted, group_bounds
from dgmfast.seeds import seed_or_drawn

LABEL_SUMS = ("exact", "sparse", "gumbel")


class Labelled(NamedTuple):
    """The labelled rows of a batch."""

    x: Tensor  # [B, D]
    y: Tensor  # [B]
    alpha: float  # weight of the cross-entropies
    first_row: int  # coordinate of the first row in the noise


@dataclass(frozen=True)
class Objective:
    """The objective that training maximises, averaged over the rows.

    Args:
        k: Number of importance samples inside the logarithm (eq. 3.31). 1 gives the ELBO, with the analytic KL where it is exact.
        m: Number of Monte-Carlo repetitions outside the logarithm.
        warmup_epochs: Number of epochs over which β grows linearly from warmup_start to 1 (eq. 5.5). β scales the KL of the label
            like that of any latent.
        warmup_start: β in the first epoch.
        free_bits: Number of nats up to which the KL of each latent, averaged over the batch, is free (Kingma et al. 2016). Needs
            k = 1. The label counts as a latent.
        analytic_kl: If true, use the analytic KL where it is exact.
        alpha: β of the semi-supervised loss, between 0.1 and 2 in the thesis. The cross-entropy of the labelled rows has the
            weight α = alpha (N_l + N_u)/N_l (App. A eq. 13).
        label_sum: How training sums over the label of an unlabelled row: "exact", "sparse" or "gumbel". The last two need k = 1.
        tau: τ of the sparse sum.
        temperature: Temperature of the Gumbel-softmax relaxation.
        estimator: Gradient estimator: "iwae", "stl" or "dreg" (see objectives.estimators).
        chunk: Number of samples of a row that are in memory at a time, so that memory does not grow with m·k; 0 for all.
        weight_filter: Leave samples whose normalised weight is below this value out of the gradient. Needs a chunk.
        running_statistics: With stl, dreg or a chunk, let batch norm use its running statistics. The statistics of a batch would
            couple the samples.

    With stl, dreg or a chunk, the gradient follows log-density ratios, never an analytic KL.

    Raises:
        InputError: A setting is out of range, or two settings exclude each other.
    """

    k: int = 1
    m: int = 1
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    free_bits: float = 0.0
    analytic_kl: bool = True
    alpha: float = 0.1
    label_sum: str = "exact"
    tau: float = 0.25
    temperature: float = 0.5
    estimator: str = "iwae"
    chunk: int = 0
    weight_filter: float = 0.0
    running_statistics: bool = False

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
        if not self.alpha >= 0.0:
            raise InputError(f"alpha must be at least 0; got {self.alpha}")
        if self.label_sum not in LABEL_SUMS or (self.label_sum != "exact" and self.k > 1):
            got = f"{self.label_sum!r} with k = {self.k}"
            raise InputError(f"label_sum must be one of {', '.join(LABEL_SUMS)}, and exact where k > 1; got {got}")
        if self.estimator not in ESTIMATORS:
            raise InputError(f"estimator must be one of {', '.join(ESTIMATORS)}; got {self.estimator!r}")
        if self.chunk < 0 or not 0.0 <= self.weight_filter < 1.0:
            raise InputError(f"chunk must be at least 0 and weight_filter in [0, 1); got {self.chunk} and {self.weight_filter}")
        if self.weight_filter and not self.chunk:
            raise InputError(f"weight_filter needs a chunk; got {self.weight_filter} with chunk = 0")
        if self.chunk and self.k == 1 and self.estimator == "iwae":
            raise InputError(f"chunk must be 0 where k = 1 and the estimator is iwae; got {self.chunk}")
        if self.running_statistics and not self._streams:
            raise InputError("running_statistics needs a chunk, or the estimator stl or dreg")
        if self._streams and (self.free_bits or self.label_sum != "exact"):
            got = f"estimator {self.estimator!r} and chunk = {self.chunk}"
            raise InputError(f"free_bits must be 0 and label_sum exact where samples are weighted; got {got}")
        self.labels()

    @property
    def _streams(self) -> bool:
        """True if the gradient is computed by objectives.estimators."""
        return self.estimator != "iwae" or self.chunk > 0

    def check(self, model: GenerativeModel, x: Tensor, labelled: bool) -> None:
        """Raise InputError if `loss` would raise it in training for this model and x, or because of labelled rows."""
        if not self._streams:
            return
        if labelled:
            raise InputError("objective.estimator must be iwae and objective.chunk 0 with labelled rows")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            replace(self, k=2, m=1, chunk=min(self.chunk, 1)).loss(copy.deepcopy(model), x[:2], None, 1.0, 0)

    def beta(self, epoch: float) -> float:
        """β in epoch `epoch` (0-based)."""
        if self.warmup_epochs == 0:
            return 1.0
        return min(1.0, self.warmup_start + (1.0 - self.warmup_start) * epoch / self.warmup_epochs)

    def labels(self) -> LabelEstimator:
        """The estimator that sums over the label of an unlabelled row."""
        return {"sparse": SparseSum(self.tau), "gumbel": GumbelSoftmax(self.temperature)}.get(self.label_sum, ExactSum())

    def loss(
        self,
        model: GenerativeModel,
        x: Tensor,
        y: Tensor | None = None,
        beta: float = 1.0,
        seed: Seed = None,
        first_row: int = 0,
        labelled: Labelled | None = None,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms for the log.

        Without labels y, the rows of x are the unlabelled rows. `labelled` rows add their own mean (App. A eqs 12 and 13). Row i
        has the noise of row first_row + i of the whole batch, so that a batch may be split over processes.

        Args:
            model: The model, whose parameters get the gradients.
            x: [B, D].
            y: [B] labels of x, or None.
            beta: β, the weight of the KL terms.
            seed: Seed of the noise; None draws one from torch's generator.
            first_row: Coordinate of the first row in the noise.
            labelled: The labelled rows of the batch, or None.
            shares: Weights of the mean over x and of the mean over the labelled rows, for a process that has only a part of each.

        Returns:
            The loss, a scalar in nats per row, and a dict of detached scalars in nats per row.

        Raises:
            InputError: The model does not take the rows (see GenerativeModel.check), or does not fit this objective.
        """
        x = model.rows(x)
        model.check("loss", x, y)
        if labelled is not None:
            labelled = labelled._replace(x=model.rows(labelled.x))
            model.check("loss: labelled", labelled.x, labelled.y)
        return self.unchecked_loss(model, x, y, beta, seed_or_drawn("loss", seed, None, x.device), first_row, labelled, shares)

    def unchecked_loss(
        self,
        model: GenerativeModel,
        x: Tensor,
        y: Tensor | None,
        beta: float,
        seed: int | Tensor,
        first_row: int = 0,
        labelled: Labelled | None = None,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` for rows that have been checked already. It reads no values, so that the CPU does not have to wait for a GPU."""
        label: Label = self.labels() if y is None and model.num_classes else y
        if labelled is None:
            loss, log = self._loss(EncodedBatch(model, model.encode(x, label), x, label), Noise(seed, first_row), beta)
            return loss * shares[0], log
        if normalises(model):  # labelled and unlabelled rows have separate statistics
            encoding, of_labelled = model.encode(x, label), None
        else:
            both = model.encode(torch.cat([x, labelled.x]), label)
            parts = {name: t.split([x.shape[0], labelled.x.shape[0]]) for name, t in both.items()}
            encoding, of_labelled = ({name: part[i] for name, part in parts.items()} for i in range(2))
        loss, log = self._loss(EncodedBatch(model, encoding, x, label), Noise(seed, first_row), beta)
        supervised, supervised_log = self._supervised(model, labelled, beta, seed, of_labelled)
        return shares[0] * loss + shares[1] * supervised, {**log, **supervised_log}

    def _loss(self, rows: EncodedBatch, noise: Noise, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
        if not self._streams:
            return self._loss_of(rows.draw(self.m * self.k, noise), beta)
        names = ("k", "m", "estimator", "chunk", "weight_filter", "running_statistics")
        weighted = ImportanceWeighted(beta=beta, **{name: getattr(self, name) for name in names})
        bound, log = weighted.bound(rows, noise, self._log)
        return -bound.mean(), log

    def _loss_of(self, terms: Terms, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.k > 1:
            loss = -group_bounds(terms.log_weights(beta), self.m, self.k).mean()
        elif self.free_bits:
            floored = [value.mean().clamp(min=self.free_bits) for value in terms.kl_terms(self.analytic_kl).values()]
            loss = beta * sum(floored) - terms.reconstruction().mean()
        else:
            loss = -terms.bound(beta, self.analytic_kl).mean()
        return loss, self._log(terms)

    def _log(self, terms: Terms) -> dict[str, Tensor]:
        with torch.no_grad():
            kl = {name: value.mean() for name, value in terms.kl_terms(self.analytic_kl).items()}
            reconstruction = terms.reconstruction().mean()
            log = {"elbo": reconstruction - sum(kl.values()), "reconstruction": reconstruction}
        return log | {f"kl_{name}": value for name, value in kl.items()}

    def _supervised(
        self, model: GenerativeModel, labelled: Labelled, beta: float, seed: int | Tensor, encoding: Encoding | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """−L(x, y) + α Σ E[−log of each classifier's probability of y], averaged over the labelled rows (eqs 4.10 and 4.11)."""
        x, y, alpha, first_row = labelled
        # "we only collect statistics during unlabelled inference" (App. C). If there is an encoding, the model has no batch norm.
        with frozen_statistics(model) if encoding is None else nullcontext():
            encoding = model.encode(x, y) if encoding is None else encoding
            terms, entropies = model.supervise(encoding, x, self.m * self.k, Noise(seed, first_row), y)
        loss = x.new_zeros(())
        log = {f"ce_{name}": value.detach().mean() for name, value in entropies.items()}
        if terms is not None:
            assert not self._streams, "see check"
            loss, supervised_log = self._loss_of(terms, beta)
            log["labelled_elbo"] = supervised_log["elbo"]
        for entropy in entropies.values():
            loss = loss + alpha * entropy.mean()
        return loss, log

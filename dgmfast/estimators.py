"""Gradients of the importance-weighted bound: the estimators IWAE, STL and DReG, and a form whose memory does not grow with K.

All three are w̃ log w with constant normalised weights w̃, and differ in the weights that they give to three gradients of log w:
the direct one of log p, the one through the samples, and the direct one of log q (MODELS.md §1).

- iwae: w̃, w̃, w̃, the gradient of the bound itself (Burda et al. 2016);
- stl: w̃, w̃, 0, biased for K > 1 (Roeder et al. 2017);
- dreg: w̃, (1−β) w̃ + β w̃², 0, unbiased (Tucker et al. 2019).

The direct gradient of log q is the one in the weights of q's networks; through sampled parents it counts as through the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models.base import Encoding, GenerativeModel, Label, Terms
from dgmfast.models.noise import Gaussian, Noise

ESTIMATORS = ("iwae", "stl", "dreg")

Log = dict[str, Tensor]


def group_bounds(log_w: Tensor, m: int, k: int) -> Tensor:
    """log (1/k) Σ w of each group of k, [B, m], of log w [B, m·k]."""
    return ops.importance_bound(log_w.unflatten(1, (m, k)))


@dataclass(frozen=True)
class Rows:
    """What is drawn from: a batch as the model has encoded it."""

    model: GenerativeModel
    encoding: Encoding
    x: Tensor  # [B, D]
    y: Label

    def draw(self, k: int, noise: Noise) -> Terms:
        return self.model.draw(self.encoding, self.x, k, noise, self.y)


@dataclass(frozen=True)
class ImportanceWeighted:
    """(1/m) Σ log (1/k) Σ w^β, m groups of k samples, with the gradient of an estimator.

    chunk: samples of a row at a time, 0: all m·k. weight_filter: samples whose normalised weight is below it are left out of the
    gradient; needs a chunk. frozen_statistics: between the samples, batch norm takes its running statistics.
    """

    k: int
    m: int
    beta: float
    estimator: str = "iwae"
    chunk: int = 0
    weight_filter: float = 0.0
    frozen_statistics: bool = False

    def bound(self, rows: Rows, noise: Noise, log: Callable[[Terms], Log]) -> tuple[Tensor, Log]:
        """The bound of each row, [B] nats, and the mean of `log` over the samples.

        Raises:
            InputError: a label that is summed over with another estimator than iwae or a weight filter, or, with a chunk, batch
                norm in training between the samples.
        """
        if rows.model.num_classes and not isinstance(rows.y, Tensor) and (self.estimator != "iwae" or self.weight_filter):
            raise InputError("a label that is summed over needs the estimator iwae and no weight_filter")
        if self.chunk:
            streamed = _Streamed(self, rows, noise, log)
            bound: Tensor = _StreamedBound.apply(streamed, *streamed.inputs)
            return bound, streamed.log
        value, weighted, terms = self._estimate(rows, self.m * self.k, noise, None)
        bound = group_bounds(value, self.m, self.k).mean(1)
        return bound + (weighted - weighted.detach()).sum(1) / self.m, log(terms)

    def log_sums(self, log_w: Tensor) -> Tensor:
        """log Σ w of the group of each sample, [B, m·k]."""
        return log_w.unflatten(1, (self.m, self.k)).logsumexp(2).repeat_interleave(self.k, 1)

    def _estimate(self, rows: Rows, k: int, noise: Noise, log_sums: Tensor | None) -> tuple[Tensor, Tensor, Terms]:
        """log w, w̃ log w with the estimator's gradient, [B, k], and the terms; log_sums None: of these samples themselves."""
        if self.estimator == "iwae":
            terms = rows.draw(k, noise)
            log_w = terms.log_weights(self.beta)
            return log_w.detach(), self._normalised(log_w, log_sums) * log_w, terms
        samples: dict[int, Tensor] = {}
        terms = rows.draw(k, _Record(noise.seed, noise=noise, samples=samples))
        value = terms.log_weights(self.beta).detach()
        weight = self._normalised(value, log_sums)
        path = 1.0 - self.beta + self.beta * weight if self.estimator == "dreg" else torch.ones_like(weight)
        given = _Given(noise.seed, samples={stream: _scale_gradient(z, path) for stream, z in samples.items()})
        at = rows.draw(k, given)
        with _constant(rows.model):
            constant = replace(rows, encoding={name: t.detach() for name, t in rows.encoding.items()})
            for name, latent in constant.draw(k, given).latents.items():
                at.latents[name].log_q = latent.log_q
        return value, weight * at.log_weights(self.beta), terms

    def _normalised(self, log_w: Tensor, log_sums: Tensor | None) -> Tensor:
        log_w = log_w.detach()
        return (log_w - (self.log_sums(log_w) if log_sums is None else log_sums)).exp()


@dataclass(frozen=True)
class _Record(Noise):
    """Draws as `noise` does, and keeps the samples by stream."""

    noise: Noise = field(default_factory=lambda: Noise(0))
    samples: dict[int, Tensor] = field(default_factory=dict)

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z, log_q = self.noise.gaussian(q, k, stream)
        self.samples[stream] = z
        return z, log_q


@dataclass(frozen=True)
class _Given(Noise):
    """Not a draw: the samples of a `_Record`, and their log q."""

    samples: dict[int, Tensor] = field(default_factory=dict)

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z = self.samples[stream]
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)
        return z, ops.gaussian_log_prob(z, mean, log_var)


@dataclass(frozen=True)
class _Pairs(Noise):
    """The noise of single samples: `noise` at `index`, (row, sample) pairs [N] among k samples of each of the B rows."""

    noise: Noise = field(default_factory=lambda: Noise(0))
    shape: tuple[int, int] = (0, 0)  # B, k
    index: tuple[Tensor, ...] = ()

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)  # [N, 1, D]
        zeros = mean.new_zeros(*self.shape, mean.shape[-1])
        with torch.no_grad():
            eps, _ = self.noise.gaussian((zeros, zeros), 1, stream)
        z = mean + (0.5 * log_var).exp() * eps[self.index].unsqueeze(1)
        return z, ops.gaussian_log_prob(z, mean, log_var)


def _scale_gradient(z: Tensor, scale: Tensor) -> Tensor:
    """z [B, k, D], whose gradient is multiplied by scale [B, k]."""
    z = z.view_as(z)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * scale.unsqueeze(-1))
    return z


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """What is computed here has no gradient in the model's parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


class _Streamed:
    """The bound in two passes over chunks of samples: log w without gradients, then the same samples with known weights."""

    def __init__(self, settings: ImportanceWeighted, rows: Rows, noise: Noise, log: Callable[[Terms], Log]) -> None:
        self.settings, self.rows, self.noise, self._log = settings, rows, noise, log
        self.inputs = (*rows.encoding.values(), *rows.model.parameters())
        self.log: Log = {}
        self.generators: list[Any] = []  # the states of torch's generator before each chunk, for dropout

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first sample, number of samples)."""
        total = self.settings.m * self.settings.k
        for first in range(0, total, self.settings.chunk):
            yield first, min(self.settings.chunk, total - first)

    def at(self, first: int) -> Noise:
        return replace(self.noise, first_sample=self.noise.first_sample + first)

    def weigh(self) -> Tensor:
        """Pass 1: the bound [B]; keeps log Σ w, and the log."""
        settings, device = self.settings, self.rows.x.device
        total, log_w = settings.m * settings.k, []
        with _uncoupled(self.rows.model, settings.frozen_statistics):
            for first, k in self.chunks():
                self.generators.append(_generator_state(device))
                terms = self.rows.draw(k, self.at(first))
                log_w.append(terms.log_weights(settings.beta))
                for name, value in self._log(terms).items():
                    part = value * (k / total)
                    self.log[name] = self.log[name] + part if first else part
        self.log_w = torch.cat(log_w, 1)
        if settings.weight_filter:
            kept = self.kept()
            self.log["skipped_samples"] = 1.0 - kept.double().mean()
            weight = (self.log_w - settings.log_sums(self.log_w)).exp()
            self.log["skipped_weight"] = weight.masked_fill(kept, 0.0).sum() / weight.sum()
        return group_bounds(self.log_w, settings.m, settings.k).mean(1)

    def kept(self) -> Tensor:
        """Which samples count in the gradient, [B, m·k]."""
        return (self.log_w - self.settings.log_sums(self.log_w)).exp() >= self.settings.weight_filter

    def gradients(self, gradient: Tensor) -> list[Tensor | None]:
        """Pass 2: of Σ_rows gradient · bound, in `inputs`."""
        settings = self.settings
        leaves = {name: t.detach().requires_grad_(t.requires_grad) for name, t in self.rows.encoding.items()}
        rows = replace(self.rows, encoding=leaves)
        inputs = [*leaves.values(), *self.rows.model.parameters()]
        wanted = [t for t in inputs if t.requires_grad]
        totals = [torch.zeros_like(t) for t in wanted]
        log_sums = settings.log_sums(self.log_w)
        now = _generator_state(self.rows.x.device)
        with torch.enable_grad(), _uncoupled(rows.model, settings.frozen_statistics):
            for (first, k), state in zip(self.chunks(), self.generators, strict=True):
                _set_generator_state(self.rows.x.device, state)
                value = self._chunk(rows, first, k, log_sums[:, first : first + k], gradient / settings.m)
                if value is None:
                    continue
                for total, part in zip(totals, torch.autograd.grad(value, wanted, allow_unused=True), strict=True):
                    if part is not None:
                        total += part
        _set_generator_state(self.rows.x.device, now)
        summed = iter(totals)
        return [next(summed) if t.requires_grad else None for t in inputs]

    def _chunk(self, rows: Rows, first: int, k: int, log_sums: Tensor, weight: Tensor) -> Tensor | None:
        """Σ weight w̃ log w over the samples of a chunk that count; None where none does."""
        noise = self.at(first)
        if not self.settings.weight_filter:
            return (weight.unsqueeze(1) * self.settings._estimate(rows, k, noise, log_sums)[1]).sum()
        index = self.kept()[:, first : first + k].nonzero(as_tuple=True)
        row = index[0]
        if not len(row):
            return None
        y = rows.y[row] if isinstance(rows.y, Tensor) else rows.y
        pairs = replace(rows, encoding={name: t[row] for name, t in rows.encoding.items()}, x=rows.x[row], y=y)
        single = _Pairs(noise.seed, noise=noise, shape=(len(rows.x), k), index=index)
        estimate = self.settings._estimate(pairs, 1, single, log_sums[index].unsqueeze(1))[1]
        return (weight[row].unsqueeze(1) * estimate).sum()


class _StreamedBound(torch.autograd.Function):
    """`_Streamed` as a function of the encoding and the parameters."""

    @staticmethod
    def forward(ctx: Any, streamed: _Streamed, *_: Tensor) -> Tensor:
        ctx.streamed = streamed
        return streamed.weigh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.streamed.gradients(gradient)


@contextmanager
def _uncoupled(model: nn.Module, frozen: bool) -> Iterator[None]:
    """No batch norm joins the rows of one chunk: it raises in training, or takes its running statistics if `frozen`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    handles = []
    try:
        for norm in norms:
            if frozen:
                norm.eval()
            else:
                handles.append(norm.register_forward_pre_hook(_refuse))
        yield
    finally:
        for norm in norms:
            norm.train()
        for handle in handles:
            handle.remove()


def _refuse(*_: object) -> None:
    raise InputError(
        "objective.chunk must be 0 where batch norm in training couples the samples of different chunks, "
        "or objective.frozen_statistics true"
    )


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)

"""Gradients of the importance-weighted bound: the estimators IWAE, STL and DReG, and a form whose memory does not grow with K.

All three are w̃ log w with constant normalised weights w̃, and differ in the weights that they give to three gradients of log w:
the direct one of log p, the one through the samples, and the direct one of log q.

- iwae: w̃, w̃, w̃, the gradient of the bound itself (Burda et al. 2016);
- stl: w̃, w̃, 0, biased for K > 1 (Roeder et al. 2017);
- dreg: w̃, (1−β) w̃ + β w̃², 0, unbiased (Tucker et al. 2019).

The direct gradient of log q is the one in the weights of q's networks; through sampled parents it counts as through the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models import Encoding, Gaussian, GenerativeModel, Label, Noise, Terms

ESTIMATORS = ("iwae", "stl", "dreg")

Log = dict[str, Tensor]


def group_bounds(log_w: Tensor, m: int, k: int) -> Tensor:
    """log (1/k) Σ w of each group of k, [B, m], of log w [B, m·k]."""
    return ops.importance_bound(log_w.unflatten(1, (m, k)))


@dataclass(frozen=True)
class EncodedBatch:
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
    gradient; needs a chunk. running_statistics: between the samples, batch norm takes its running statistics.
    """

    k: int
    m: int
    beta: float
    estimator: str = "iwae"
    chunk: int = 0
    weight_filter: float = 0.0
    running_statistics: bool = False

    @torch.compiler.disable  # its hooks and its second pass are not for a graph
    def bound(self, rows: EncodedBatch, noise: Noise, log: Callable[[Terms], Log]) -> tuple[Tensor, Log]:
        """The bound of each row, [B] nats, and the mean of `log` over the samples. No second derivatives, and none in x.

        Raises:
            InputError: batch norm in training between the samples; a label that is summed over, with another estimator than iwae
                or a weight filter; dropout with a weight filter; an x that wants a gradient, with a chunk.
        """
        model = rows.model
        if model.num_classes and not isinstance(rows.y, Tensor) and (self.estimator != "iwae" or self.weight_filter):
            raise InputError("a label that is summed over needs the estimator iwae and no weight_filter")
        if self.weight_filter and _drops(model):
            raise InputError("weight_filter must be 0 with dropout, whose masks it cannot draw again")
        if self.chunk:
            if rows.x.requires_grad:
                raise InputError("chunk must be 0 where x wants a gradient")
            streamed = _Streamed(self, rows, noise, log)
            bound: Tensor = _StreamedBound.apply(streamed, *streamed.inputs(rows))
            return bound, streamed.log
        with _uncoupled(model, self.running_statistics):
            value, weighted, terms = self._estimate(rows, self.m * self.k, noise, None)
        bound = group_bounds(value, self.m, self.k).mean(1)
        return bound + (weighted - weighted.detach()).sum(1) / self.m, log(terms)

    def normalised(self, log_w: Tensor) -> Tensor:
        """w̃ of log w, both [B, m·k]; 0 where all weights of a bound are 0."""
        groups = log_w.unflatten(1, (self.m, self.k))
        none = (groups == -math.inf).all(2, keepdim=True)
        return torch.softmax(groups.masked_fill(none, 0.0), 2).masked_fill(none, 0.0).flatten(1)

    def _estimate(self, rows: EncodedBatch, k: int, noise: Noise, weight: Tensor | None) -> tuple[Tensor, Tensor, Terms]:
        """log w, w̃ log w with the estimator's gradient, [B, k], and the terms; weight: w̃, None: of these samples themselves."""
        samples: dict[int, Tensor] = {}
        replay = _Replay(rows) if self.estimator != "iwae" else None
        terms = rows.draw(k, _Record(noise.seed, noise=noise, samples=samples) if replay else noise)
        log_w = terms.log_weights(self.beta)
        value = log_w.detach()
        weight = self.normalised(value) if weight is None else weight
        if replay:
            log_w = self._at(rows, k, noise, samples, weight, replay)
        return value, weight * log_w.masked_fill(weight == 0.0, 0.0), terms

    def _at(
        self, rows: EncodedBatch, k: int, noise: Noise, samples: dict[int, Tensor], weight: Tensor, replay: _Replay
    ) -> Tensor:
        """log w at the samples, with the gradient of stl or dreg but for the factor w̃."""
        path = 1.0 - self.beta + self.beta * weight if self.estimator == "dreg" else torch.ones_like(weight)
        given = _Given(noise.seed, samples={stream: _scale_gradient(z, path) for stream, z in samples.items()})
        with replay:
            terms = rows.draw(k, given)
        constant = replace(rows, encoding={name: t.detach() for name, t in rows.encoding.items()})
        with replay, _constant(rows.model):
            fixed = constant.draw(k, given)
        for name, latent in fixed.latents.items():
            terms.latents[name].log_q = latent.log_q
        return terms.log_weights(self.beta)


@dataclass(frozen=True, kw_only=True)
class _Record(Noise):
    """Draws as `noise` does, whose coordinates count, and keeps the samples by stream."""

    noise: Noise
    samples: dict[int, Tensor]

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z, log_q = self.noise.gaussian(q, k, stream)
        self.samples[stream] = z
        return z, log_q


@dataclass(frozen=True, kw_only=True)
class _Given(Noise):
    """Not a draw: the samples of a `_Record`, and their log q."""

    samples: dict[int, Tensor]

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z = self.samples[stream]
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)
        return z, ops.gaussian_log_prob(z, mean, log_var)


@dataclass(frozen=True, kw_only=True)
class _Pairs(Noise):
    """The noise of single samples: `noise` at `index`, (row, sample) pairs [N] among k samples of each of the B rows."""

    noise: Noise
    shape: tuple[int, int]  # B, k
    index: tuple[Tensor, ...]

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

    def __init__(self, settings: ImportanceWeighted, rows: EncodedBatch, noise: Noise, log: Callable[[Terms], Log]) -> None:
        self.settings, self.rows, self.noise, self._log = settings, rows, noise, log
        self.log: Log = {}
        self.replays: list[_Replay] = []
        kind = rows.x.device.type
        self.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def inputs(self, rows: EncodedBatch) -> list[Tensor]:
        """What the bound is a function of."""
        return [*rows.encoding.values(), *rows.model.parameters()]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first sample, number of samples)."""
        total = self.settings.m * self.settings.k
        for first in range(0, total, self.settings.chunk):
            yield first, min(self.settings.chunk, total - first)

    def at(self, first: int) -> Noise:
        return replace(self.noise, first_sample=self.noise.first_sample + first)

    def weigh(self) -> Tensor:
        """Pass 1: the bound [B]; keeps the weights, and the log."""
        settings, total = self.settings, self.settings.m * self.settings.k
        log_w = torch.empty(0)
        with _uncoupled(self.rows.model, settings.running_statistics):
            for first, k in self.chunks():
                self.replays.append(_Replay(self.rows))
                terms = self.rows.draw(k, self.at(first))
                part = terms.log_weights(settings.beta)
                # made once: many small tensors between large ones would keep the heap from shrinking
                log_w = log_w if first else part.new_empty(part.shape[0], total)
                log_w[:, first : first + k] = part
                for name, value in self._log(terms).items():
                    share = value * (k / total)
                    self.log[name] = self.log[name] + share if first else share
        self.weight = settings.normalised(log_w)
        self.kept = self.weight >= settings.weight_filter
        if settings.weight_filter:
            self.log["skipped_samples"] = 1.0 - self.kept.double().mean()
            self.log["skipped_weight"] = self.weight.masked_fill(self.kept, 0.0).sum() / self.weight.sum()
        return group_bounds(log_w, settings.m, settings.k).mean(1)

    def gradients(self, gradient: Tensor) -> list[Tensor | None]:
        """Pass 2: of Σ_rows gradient · bound, in `inputs`."""
        settings = self.settings
        leaves = {name: t.detach().requires_grad_(t.requires_grad) for name, t in self.rows.encoding.items()}
        rows = replace(self.rows, encoding=leaves)
        inputs = self.inputs(rows)
        wanted = [t for t in inputs if t.requires_grad]
        totals: list[Tensor | None] = [None] * len(wanted)
        with torch.enable_grad(), self.autocast, _uncoupled(rows.model, settings.running_statistics):
            for (first, k), replay in zip(self.chunks(), self.replays, strict=True):
                with replay:
                    value = self._chunk(rows, first, k, gradient / settings.m)
                found = () if value is None else torch.autograd.grad(value, wanted, allow_unused=True)
                for i, part in enumerate(found):
                    total = totals[i]
                    totals[i] = part if total is None else total if part is None else total.add_(part)
        summed = iter(totals)
        return [next(summed) if t.requires_grad else None for t in inputs]

    def _chunk(self, rows: EncodedBatch, first: int, k: int, row_weight: Tensor) -> Tensor | None:
        """Σ row_weight w̃ log w over the samples of a chunk that count; None where none does."""
        noise, weight = self.at(first), self.weight[:, first : first + k]
        if not self.settings.weight_filter:
            return (row_weight.unsqueeze(1) * self.settings._estimate(rows, k, noise, weight)[1]).sum()
        index = self.kept[:, first : first + k].nonzero(as_tuple=True)
        row = index[0]
        if not len(row):
            return None
        y = rows.y[row] if isinstance(rows.y, Tensor) else rows.y
        pairs = replace(rows, encoding={name: t[row] for name, t in rows.encoding.items()}, x=rows.x[row], y=y)
        single = _Pairs(noise.seed, noise=noise, shape=(rows.x.shape[0], k), index=index)
        estimate = self.settings._estimate(pairs, 1, single, weight[index].unsqueeze(1))[1]
        return (row_weight[row].unsqueeze(1) * estimate).sum()


class _StreamedBound(torch.autograd.Function):
    """`_Streamed` as a function of the encoding and the parameters."""

    @staticmethod
    def forward(ctx: Any, streamed: _Streamed, *inputs: Tensor) -> Tensor:
        ctx.streamed = streamed
        ctx.save_for_backward(*inputs)  # so that a change of theirs before the backward pass is noticed
        return streamed.weigh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the bound in chunks has no second derivative: take chunk = 0")
        _ = ctx.saved_tensors
        return None, *ctx.streamed.gradients(gradient)


def _drops(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in model.modules())


class _Replay:
    """`with replay:` dropout draws the masks that it drew where this was made; after it, the generator is as before."""

    def __init__(self, rows: EncodedBatch) -> None:
        self.device = rows.x.device
        self.state = self._get() if _drops(rows.model) else None

    def __enter__(self) -> None:
        if self.state is not None:
            self.before = self._get()
            self._set(self.state)

    def __exit__(self, *_: object) -> None:
        if self.state is not None:
            self._set(self.before)

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)


@contextmanager
def _uncoupled(model: nn.Module, frozen: bool) -> Iterator[None]:
    """No batch norm joins samples: it raises in training, or takes its running statistics if `frozen`."""
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
        "objective.estimator must be iwae and objective.chunk 0 where batch norm in training couples the samples, "
        "or objective.running_statistics true"
    )

"""Gradient estimators of the importance-weighted bound: IWAE, STL and DReG, also in a form whose memory does not grow with K.

All three estimators differentiate w̃ log w with the normalised weights w̃ held constant. log w has three gradients: the direct
gradient of log p, the gradient through the samples, and the direct gradient of log q. The estimators give them different weights:

- iwae: w̃, w̃ and w̃, the gradient of the bound itself (Burda et al. 2016);
- stl: w̃, w̃ and 0, biased for K > 1 (Roeder et al. 2017);
- dreg: w̃, (1−β) w̃ + β w̃² and 0, unbiased (Tucker et al. 2019).

The direct gradient of log q is the gradient with respect to the weights of q's networks. A gradient of log q through sampled
parents counts as a gradient through the samples.
"""

from __future__ import annotations

import math
import sys
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
    """log (1/k) Σ w of each group of k samples, [B, m], from log w [B, m·k]."""
    return ops.importance_bound(log_w.unflatten(1, (m, k)))


@dataclass(frozen=True)
class EncodedBatch:
    """A batch together with its encoding, from which samples can be drawn."""

    model: GenerativeModel
    encoding: Encoding
    x: Tensor  # [B, D]
    y: Label

    def draw(self, k: int, noise: Noise) -> Terms:
        """Draw k samples per row, and return their terms."""
        return self.model.draw(self.encoding, self.x, k, noise, self.y)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for a caller that may be compiled. Its hooks and second pass cannot be compiled, so torch.compile leaves it out.

    Importing the compiler takes a second, so it is not imported where nothing is compiled.
    """
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


@dataclass(frozen=True)
class ImportanceWeighted:
    """The bound (1/m) Σ log (1/k) Σ w^β over m groups of k samples, with the gradient of an estimator.

    Args:
        k: Number of samples in a group.
        m: Number of groups.
        beta: β.
        estimator: "iwae", "stl" or "dreg".
        chunk: Number of samples of a row that are in memory at a time; 0 for all m·k.
        weight_filter: Leave samples whose normalised weight is below this value out of the gradient. Needs a chunk.
        running_statistics: If true, batch norm that would couple the samples uses its running statistics.
    """

    k: int
    m: int
    beta: float
    estimator: str = "iwae"
    chunk: int = 0
    weight_filter: float = 0.0
    running_statistics: bool = False

    def bound(self, rows: EncodedBatch, noise: Noise, log: Callable[[Terms], Log]) -> tuple[Tensor, Log]:
        """The bound of each row, [B] in nats, and the mean of `log` over the samples.

        It has no second derivative. Only the estimator iwae without a chunk supports a gradient in x.

        Raises:
            InputError: Batch norm in training would couple the samples; a label is summed over, with an estimator other than iwae
                or with a weight filter; a weight filter is used with dropout; or x requires a gradient, with a chunk or an
                estimator other than iwae.
        """
        return _uncompiled(ImportanceWeighted._bound)(self, rows, noise, log)

    def _bound(self, rows: EncodedBatch, noise: Noise, log: Callable[[Terms], Log]) -> tuple[Tensor, Log]:
        model = rows.model
        if model.num_classes and not isinstance(rows.y, Tensor) and (self.estimator != "iwae" or self.weight_filter):
            raise InputError("a label that is summed over needs the estimator iwae and no weight_filter")
        if self.weight_filter and _drops(model):
            raise InputError("weight_filter must be 0 with dropout, whose masks it cannot draw again")
        if rows.x.requires_grad and (self.chunk or self.estimator != "iwae"):
            got = f"estimator {self.estimator!r} and chunk = {self.chunk}"
            raise InputError(f"a gradient in x needs the estimator 'iwae' and chunk = 0; got {got}")
        if self.chunk:
            streamed = _Streamed(self, rows, noise, log)
            bound: Tensor = _StreamedBound.apply(streamed, *streamed.inputs(rows))
            return bound, streamed.log
        with _uncoupled(model, self.running_statistics):
            value, weighted, terms = self._estimate(rows, self.m * self.k, noise, None)
        bound = group_bounds(value, self.m, self.k).mean(1)
        return bound + (weighted - weighted.detach()).sum(1) / self.m, log(terms)

    def normalised(self, log_w: Tensor) -> Tensor:
        """The normalised weights w̃ from log w, both [B, m·k]. They are 0 if all weights of a group are 0."""
        groups = log_w.unflatten(1, (self.m, self.k))
        none = (groups == -math.inf).all(2, keepdim=True)
        return torch.softmax(groups.masked_fill(none, 0.0), 2).masked_fill(none, 0.0).flatten(1)

    def _estimate(self, rows: EncodedBatch, k: int, noise: Noise, weight: Tensor | None) -> tuple[Tensor, Tensor, Terms]:
        """log w, w̃ log w with the estimator's gradient, both [B, k], and the terms.

        `weight` is w̃, or None to compute it from these samples.
        """
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
        """log w at given samples. Its gradient is that of stl or dreg, without the factor w̃."""
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
    """Noise that draws from `noise`, with the coordinates of `noise`, and stores the samples by stream."""

    noise: Noise
    samples: dict[int, Tensor]

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z, log_q = self.noise.gaussian(q, k, stream)
        self.samples[stream] = z
        return z, log_q


@dataclass(frozen=True, kw_only=True)
class _Given(Noise):
    """Returns the samples of a `_Record` instead of drawing, with their log q."""

    samples: dict[int, Tensor]

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        z = self.samples[stream]
        mean, log_var = (t.unsqueeze(1) if t.dim() == 2 else t for t in q)
        return z, ops.gaussian_log_prob(z, mean, log_var)


@dataclass(frozen=True, kw_only=True)
class _Pairs(Noise):
    """The noise of selected samples of `noise`: `index` holds N pairs (row, sample), among k samples of each of the B rows."""

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
    """Return z [B, k, D] unchanged; its gradient is multiplied by scale [B, k]."""
    z = z.view_as(z)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * scale.unsqueeze(-1))
    return z


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """Context manager: the model's parameters get no gradient from what is computed here."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


class _Streamed:
    """The bound in two passes over chunks of samples: first log w without gradients, then the same samples with known weights."""

    def __init__(self, settings: ImportanceWeighted, rows: EncodedBatch, noise: Noise, log: Callable[[Terms], Log]) -> None:
        self.settings, self.rows, self.noise, self._log = settings, rows, noise, log
        self.log: Log = {}
        self.replays: list[_Replay] = []
        kind = rows.x.device.type
        self.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def inputs(self, rows: EncodedBatch) -> list[Tensor]:
        """The tensors that the bound depends on."""
        return [*rows.encoding.values(), *rows.model.parameters()]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield (first sample, number of samples) of each chunk."""
        total = self.settings.m * self.settings.k
        for first in range(0, total, self.settings.chunk):
            yield first, min(self.settings.chunk, total - first)

    def at(self, first: int) -> Noise:
        """The noise of the samples from `first` on."""
        return replace(self.noise, first_sample=self.noise.first_sample + first)

    def weigh(self) -> Tensor:
        """Pass 1: compute the bound [B], and store the weights and the log."""
        settings, total = self.settings, self.settings.m * self.settings.k
        log_w = torch.empty(0)
        with _uncoupled(self.rows.model, settings.running_statistics):
            for first, k in self.chunks():
                self.replays.append(_Replay(self.rows))
                terms = self.rows.draw(k, self.at(first))
                part = terms.log_weights(settings.beta)
                # Allocated once: many small tensors between large ones would keep the heap from shrinking.
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
        """Pass 2: the gradients of Σ_rows gradient · bound with respect to `inputs`."""
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
        """Σ row_weight w̃ log w over the samples of a chunk that pass the weight filter, or None if there are none."""
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
    """Autograd function for `_Streamed`, as a function of the encoding and the parameters."""

    @staticmethod
    def forward(ctx: Any, streamed: _Streamed, *inputs: Tensor) -> Tensor:
        ctx.streamed = streamed
        ctx.save_for_backward(*inputs)  # autograd then detects changes in place
        return streamed.weigh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the bound in chunks has no second derivative: take chunk = 0")
        _ = ctx.saved_tensors
        return None, *ctx.streamed.gradients(gradient)


def _drops(model: nn.Module) -> bool:
    """True if the model contains dropout in training mode."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in model.modules())


class _Replay:
    """Context manager that replays dropout: inside it, dropout draws the masks that it drew where this object was created.

    Afterwards the generator is in the state that it had before.
    """

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
    """Context manager: no batch norm couples samples. In training mode it raises, or uses running statistics if `frozen`."""
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

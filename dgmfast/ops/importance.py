"""Importance weights, given by their logarithms: the importance-weighted bound, and a streaming state that can be merged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import REFUSALS, compiled, is_compiling, retry


def importance_bound(log_w: Tensor, dim: int = -1) -> Tensor:
    """Importance-weighted bound log (1/K) Σ_k w_k over the K weights along `dim`, in nats.

    Args:
        log_w: [..., K, ...], floating point, the logarithms of the weights.
        dim: The dimension of size K.

    Returns:
        [...] without `dim`. The gradient is the normalised weights. If all weights are 0, the bound is −∞ and the gradient 0.
        Weights of e^∞ share the gradient equally. A second derivative raises NotImplementedError. 16-bit tensors on the CPU are
        computed in float32, and the results are rounded.

    Raises:
        ValueError: There is no sample along `dim`.
        IndexError: The tensor has no dimension `dim`.
        TypeError: The dtype is not supported.

    Source: thesis eq. 3.31 (Burda et al. 2015).
    """
    if is_compiling():
        return compiled("importance_bound", (log_w,), dim)
    try:
        return _C.importance_bound(log_w, dim)
    except REFUSALS as error:
        if isinstance(log_w, Tensor) and not (isinstance(dim, int) and -(2**63) <= dim < 2**63):
            got = dim if isinstance(dim, int) else type(dim).__name__
            raise TypeError(f"importance_bound: dim must be an int; got {got}") from None
        return retry(importance_bound, error, {"log_w": log_w}, dim)


def importance_state(log_w: Tensor, state: Tensor | None = None) -> Tensor:
    """Accumulate the sufficient statistics of importance weights in one pass, starting from those of an earlier `state`.

    Args:
        log_w: [..., K], floating point, the logarithms of the weights.
        state: [..., 5] float64 from an earlier call, or None to start.

    Returns:
        [..., 5] float64: (max log w, Σ w/max, Σ (w/max)², Σ log w, count). `ImportanceState` computes the estimates from it. The
        op has no gradient; asking for one raises RuntimeError.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported.
    """
    if is_compiling():
        return compiled("importance_state", (log_w,), state, rounded=False)
    try:
        return _C.importance_state(log_w, state)
    except REFUSALS as error:
        if isinstance(log_w, Tensor) and not (state is None or isinstance(state, Tensor)):
            raise TypeError(f"importance_state: state must be a tensor; got {type(state).__name__}") from None
        return retry(importance_state, error, {"log_w": log_w}, state, rounded=False)


class ImportanceState:
    """Streaming state of the importance weights of many rows: add weights in blocks, read the estimates at any time.

    The weights are read once, and the memory is constant. States can be merged: the states of two halves of the samples merge
    into the state of the whole, equal up to float64 rounding (and bit-equal if the blocks and their order are the same). The
    estimates are float64 tensors [...], in nats.
    """

    def __init__(self, values: Tensor | None = None) -> None:
        """Start from `values`, [..., 5] float64 as `importance_state` returns it, or from None before the first weights."""
        self._values = values

    @property
    def values(self) -> Tensor:
        """The state itself, [..., 5] float64.

        Raises:
            ValueError: No weights have been added yet.
        """
        if self._values is None:
            raise ValueError("ImportanceState: no weights yet; call update first")
        return self._values

    def update(self, log_w: Tensor) -> ImportanceState:
        """Add the weights whose logarithms are log_w [..., K], and return self."""
        with torch.no_grad():
            self._values = importance_state(log_w, self._values)
        return self

    def merge(self, other: ImportanceState) -> ImportanceState:
        """Return the state of both sets of weights, which must belong to the same rows.

        Raises:
            TypeError: `other` is not an ImportanceState.
            ValueError: The two states have different shapes.
        """
        if not isinstance(other, ImportanceState):
            raise TypeError(f"merge: other must be an ImportanceState; got {type(other).__name__}")
        if self._values is None or other._values is None:
            return ImportanceState(other._values if self._values is None else self._values)
        if self.values.shape != other.values.shape:
            raise ValueError(
                f"merge: the states must be of the same rows, {list(self.values.shape[:-1])}; got {list(other.values.shape[:-1])}"
            )
        mine, theirs = self.values.unbind(-1), other.values.unbind(-1)
        top = torch.maximum(mine[0], theirs[0])
        # Equal maxima give e^0; the difference of two equal infinities would be NaN.
        scale = [torch.where(s[0] == top, 0.0, s[0] - top).exp() for s in (mine, theirs)]
        sums = [mine[1] * scale[0] + theirs[1] * scale[1], mine[2] * scale[0] ** 2 + theirs[2] * scale[1] ** 2]
        return ImportanceState(torch.stack([top, *sums, mine[3] + theirs[3], mine[4] + theirs[4]], -1))

    @property
    def count(self) -> int:
        """K, the number of weights per row (the largest one, if rows have different numbers)."""
        return 0 if self._values is None or self._values.numel() == 0 else int(self._values[..., 4].max())

    @property
    def log_px(self) -> Tensor:
        """The importance-weighted bound log (1/K) Σ w (eq. 3.31). On average it is below log p(x) by about std_error²/2."""
        top, total, _, _, count = self.values.unbind(-1)
        return top + total.log() - count.log()

    @property
    def elbo(self) -> Tensor:
        """The bound L_1, the mean of log w."""
        _, _, _, logs, count = self.values.unbind(-1)
        return logs / count

    @property
    def ess(self) -> Tensor:
        """The effective sample size (Σ w)² / Σ w², between 1 and K."""
        _, total, squares, _, _ = self.values.unbind(-1)
        return total.square() / squares

    @property
    def std_error(self) -> Tensor:
        """The standard error of log_px by the delta method: s.e.² = K/(K−1) (Σw²/(Σw)² − 1/K). It is infinite for K = 1."""
        _, total, squares, _, count = self.values.unbind(-1)
        variance = (squares / total.square() - 1.0 / count).clamp(min=0.0) * count / (count - 1.0)
        return torch.where(count > 1, variance.sqrt(), math.inf)

"""The Pareto k̂ of importance weights, a measure of how heavy their tail is, computed from the largest weights only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_TAIL = 5  # with fewer weights there is no fit
PRIOR_SHAPE, PRIOR_WEIGHT = 0.5, 10.0  # the prior of k̂ counts as 10 weights of shape ½


def tail_size(k: int) -> int:
    """The number of weights in the tail of k weights: min(K/5, 3√K), rounded down."""
    return min(k // 5, math.isqrt(9 * k))


class Tail:
    """The largest weights of each row: the tail of k weights, and the largest weight below it. Memory grows with √K."""

    def __init__(self, k: int) -> None:
        """k is the largest number of weights that a row may get."""
        self._size = tail_size(k) + 1
        self._kept: list[Tensor] = []

    def update(self, log_w: Tensor) -> None:
        """Add log_w [N, K']."""
        self._kept.append(log_w)
        if sum(part.shape[1] for part in self._kept) > 2 * self._size:
            self._kept = [self._largest()]

    def _largest(self) -> Tensor:
        """The largest weights so far, in descending order."""
        kept = torch.cat(self._kept, 1)
        return kept.topk(min(self._size, kept.shape[1]), 1).values

    def pareto_k(self, count: Tensor) -> Tensor:
        """k̂ [N] float64 for rows with count [N] weights. NaN if the tail has fewer than five weights, or only equal ones."""
        largest = self._largest().double()
        shape = torch.full(largest.shape[:1], math.nan, dtype=torch.float64, device=largest.device)
        for k in count.unique().tolist():
            size = tail_size(int(k))
            if size >= LEAST_TAIL:
                rows = count == k
                shape[rows] = generalized_pareto_shape(largest[rows, : size + 1])
        return shape


def generalized_pareto_shape(log_w: Tensor) -> Tensor:
    """The shape k̂ of the generalised Pareto distribution fitted to the weights minus the least of them: log_w [N, n + 1] -> [N].

    log_w is in descending order. The method is that of Zhang & Stephens (2009), which averages the profile likelihood over a
    grid, with the prior of Vehtari et al. (2024), appendix C.
    """
    w = (log_w - log_w[:, :1]).exp()
    x = w[:, :-1] - w[:, -1:]  # [N, n], descending
    n = x.shape[1]
    grid = 30 + math.isqrt(n)
    points = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device)
    quartile = x[:, n - int(n / 4 + 0.5)]
    b = 1 / x[:, :1] + (1 - (grid / (points - 0.5)).sqrt()) / (3 * quartile.unsqueeze(1))  # [N, grid]
    shapes = torch.log1p(-b.unsqueeze(2) * x.unsqueeze(1)).mean(2)
    weights = torch.softmax(n * ((-b / shapes).log() - shapes - 1), 1)
    weights = weights.where(weights >= 10 * torch.finfo(x.dtype).eps, 0.0)
    mean_b = (b * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    shape = torch.log1p(-mean_b * x).mean(1)
    shape = (n * shape + PRIOR_WEIGHT * PRIOR_SHAPE) / (n + PRIOR_WEIGHT)
    return shape.where(shape.isfinite(), math.nan)

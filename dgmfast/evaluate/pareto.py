"""Pareto k̂ of importance weights: how heavy their tail is, from the largest of them alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_TAIL = 5  # weights: fewer allow no fit
PRIOR_SHAPE, PRIOR_WEIGHT = 0.5, 10.0  # of k̂, as if so many weights had shown a shape of ½


def tail_size(k: int) -> int:
    """How many of k weights are the tail: min(K/5, 3√K), rounded down."""
    return min(k // 5, math.isqrt(9 * k))


class Tail:
    """The largest weights of each of many rows, in memory that grows with √K: the tail of k weights and the one below it."""

    def __init__(self, k: int) -> None:
        """k: the most weights that a row may get."""
        self._size = tail_size(k) + 1
        self._kept: list[Tensor] = []

    def update(self, log_w: Tensor) -> None:
        """Add log_w [N, K']."""
        self._kept.append(log_w)
        if sum(part.shape[1] for part in self._kept) > 2 * self._size:
            self._kept = [self._largest()]

    def _largest(self) -> Tensor:
        kept = torch.cat(self._kept, 1)
        return kept.topk(min(self._size, kept.shape[1]), 1).values

    def pareto_k(self, count: Tensor) -> Tensor:
        """k̂ [N], float64, of rows of count [N] weights; NaN where the tail has fewer than five weights, or they are equal."""
        largest = self._largest().double()
        shape = torch.full(largest.shape[:1], math.nan, dtype=torch.float64, device=largest.device)
        for k in count.unique().tolist():
            size = tail_size(int(k))
            if size >= LEAST_TAIL:
                rows = count == k
                shape[rows] = generalized_pareto_shape(largest[rows, : size + 1])
        return shape


def generalized_pareto_shape(log_w: Tensor) -> Tensor:
    """Shape k̂ of the generalised Pareto distribution of w above the least of them: log_w [N, n + 1], descending -> [N].

    Zhang & Stephens (2009), the profile likelihood averaged over a grid, with the prior of Vehtari et al. (2024), appendix C.
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

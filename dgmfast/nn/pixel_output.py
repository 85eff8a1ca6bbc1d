"""The distribution of one colour channel of a pixel: Bernoulli, categorical or discretised logistic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast import ops
from dgmfast.errors import InputError

LOWEST_LOG_SCALE = -7.0  # the bound that PixelCNN++ uses
_PARAMETERS = {"bernoulli": lambda levels: 1, "categorical": lambda levels: levels, "logistic": lambda levels: 2}
KINDS = tuple(_PARAMETERS)


@dataclass(frozen=True)
class PixelOutput:
    """The distribution of one colour channel of a pixel, x in [0, 1], given the network's outputs at that pixel.

    The outputs [N, C·P, H, W] are C consecutive groups of P parameters, one group per channel. Log scales below −7 are raised to
    −7.

    Args:
        kind: "bernoulli" has one logit, and x is 0 or 1. "categorical" has one logit per level v, and x = v / (levels − 1).
            "logistic" has the mean and the log scale of a logistic distribution on [−1, 1], rounded to the levels (Salimans et
            al. 2017, eq. 2, with one component).
        levels: Number of values of x; 2 for "bernoulli".

    Raises:
        InputError: The kind is unknown, or levels is out of range.
    """

    kind: str = "bernoulli"
    levels: int = 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if not isinstance(self.levels, int) or self.levels < 2 or (self.kind == "bernoulli" and self.levels != 2):
            expected = "2 for bernoulli" if self.kind == "bernoulli" else "a whole number of at least 2"
            raise InputError(f"levels must be {expected}; got {self.levels}")

    def channels(self, colors: int) -> int:
        """The number of outputs that a network needs for images of `colors` channels."""
        return colors * _PARAMETERS[self.kind](self.levels)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats: params [N, C·P, H, W] and x [N, C, H, W] -> [N].

        Raises:
            InputError: The shapes do not fit, or a value of x is farther than 1e-4 from every level (categorical and logistic).
        """
        params = self._by_channel(params, x.shape[1])
        if x.shape != params[:, :, 0].shape:
            raise InputError(f"x must have the batch and size of params, {list(params[:, :, 0].shape)}; got {list(x.shape)}")
        if self.kind == "bernoulli":
            return ops.bernoulli_log_prob(params.flatten(1), x.flatten(1))
        level = (x * (self.levels - 1)).round().clamp(0, self.levels - 1)
        if x.numel() and not bool(((x - level / (self.levels - 1)).abs() <= 1e-4).all()):
            raise InputError(f"x must lie on the {self.levels} levels v/{self.levels - 1}, to 1e-4; got other values")
        if self.kind == "categorical":
            chosen = params.log_softmax(2).gather(2, level.long().unsqueeze(2))
            return chosen.flatten(1).sum(1)
        return _logistic_log_prob(params[:, :, 0], params[:, :, 1], level, self.levels).flatten(1).sum(1)

    def draw(self, params: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        """The smallest value whose cumulative probability exceeds u: params [N, P] and u [N] in [0, 1) -> x [N], float64.

        `temperature` divides the logits, and multiplies the scale of the logistic distribution.
        """
        params, u = params.double(), u.double()
        if self.kind == "bernoulli":
            return (u < torch.sigmoid(params[:, 0] / temperature)).double()
        if self.kind == "categorical":
            reached = torch.cumsum(torch.softmax(params / temperature, 1), 1) > u.unsqueeze(1)
            level = self.levels - reached.sum(1).clamp(min=1)
        else:
            scale = torch.exp(params[:, 1].clamp(min=LOWEST_LOG_SCALE))
            value = params[:, 0] + temperature * scale * torch.logit(u)
            level = ((value + 1.0) / 2.0 * (self.levels - 1)).round().clamp(0, self.levels - 1)
        return level.double() / (self.levels - 1)

    def mean(self, params: Tensor) -> Tensor:
        """E[x]: params [N, C·P, H, W] -> [N, C, H, W]. For the logistic, the mean parameter mapped to [0, 1] and clipped."""
        params = self._by_channel(params, None)
        if self.kind == "bernoulli":
            return torch.sigmoid(params[:, :, 0])
        if self.kind == "categorical":
            grid = torch.linspace(0.0, 1.0, self.levels, dtype=params.dtype, device=params.device)
            return (params.softmax(2) * grid.view(-1, 1, 1)).sum(2)
        return ((params[:, :, 0] + 1.0) / 2.0).clamp(0.0, 1.0)

    def _by_channel(self, params: Tensor, colors: int | None) -> Tensor:
        """The parameters by channel, [N, C, P, H, W]."""
        count = self.channels(1)
        if params.dim() != 4 or params.shape[1] % count or (colors is not None and params.shape[1] != count * colors):
            expected = f"{count} per channel" if colors is None else str(count * colors)
            raise InputError(f"params must have shape [N, {expected}, H, W] for {self.kind} pixels; got {list(params.shape)}")
        return params.unflatten(1, (-1, count))


def _logistic_log_prob(mean: Tensor, log_scale: Tensor, level: Tensor, levels: int) -> Tensor:
    """Log-probability of the bin of width 2/(levels − 1) around the level; the two outer bins extend to infinity.

    With a and b the ends of the bin in units of the scale, σ(b) − σ(a) = σ(b) σ(−a) (1 − e^{a−b}). In this form nothing cancels.
    """
    log_scale = log_scale.clamp(min=LOWEST_LOG_SCALE)
    center, half = 2.0 * level / (levels - 1) - 1.0 - mean, 1.0 / (levels - 1)
    inverse = torch.exp(-log_scale)
    log_below_end = F.logsigmoid(inverse * (center + half))
    log_above_start = F.logsigmoid(-inverse * (center - half))
    width = 2.0 * half * inverse
    # log(1 − e^{−w}). For small w it is log w − w/2, which does not underflow.
    log_width = math.log(2.0 * half) - log_scale - 0.5 * width
    log_inside = torch.where(width < 1e-3, log_width, torch.log(-torch.expm1(-width.clamp(min=1e-3))))
    inside = log_below_end + log_above_start + log_inside
    return torch.where(level == 0, log_below_end, torch.where(level == levels - 1, log_above_start, inside))

"""The output distributions p(x|h): what all have, and those of one decoder layer, Bernoulli and Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.nn.heads import GaussianHead
from dgmfast.nn.pixelcnn import OUTPUT_STREAM, PixelCNNOutput
from dgmfast.nn.plain import is_plain


class OutputDistribution(Protocol):
    """p(x|h): what a model's `output` must have.

    support: the least and the largest value of x, or None for any. autoregressive: whether p(x|h) draws a number of x given
    those before it.
    """

    support: tuple[float, float] | None
    autoregressive: bool

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, ...] and x [B, 1, D] -> log p(x|h) [B, k] in nats; further dimensions, of labels, as k."""
        ...

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """The mean of p(x|h), [..., D]; of an autoregressive one, that of each number given those of x before it."""
        ...

    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """x ~ p(x|h), one for each row of h [n, 1, ...], with the noise of models.Noise: [n, 1, D].

        temperature: divides the logits, or multiplies the standard deviation. progress: told what is done, and of how much.
        """
        ...

    def init_mean(self, mean: Tensor) -> None:
        """Set the biases of the untrained p(x|h) so that its mean is about `mean` [D]."""
        ...


class BernoulliOutput(nn.Module):
    """p(x|h) = Π_d Bernoulli(x_d; σ(W h + b)_d), of x in [0, 1]."""

    support: tuple[float, float] | None = (0.0, 1.0)
    autoregressive = False

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.logits = nn.Linear(n_in, x_dim)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, n_in] and x [B, 1, D] -> log p(x|h) [B, k] in nats; further dimensions, of labels, as k."""
        one_x = h.dim() == x.dim() >= 2 and h.shape[0] == x.shape[0] and all(size == 1 for size in x.shape[1:-1])
        if not one_x or not is_plain(self.logits, nn.Linear, "weight", "bias"):
            return ops.bernoulli_log_prob(self.logits(h), x)
        samples = h.flatten(1, -2) if h.dim() > 2 else h
        log_prob = ops.linear_bernoulli_log_prob(samples, self.logits.weight, self.logits.bias, x.flatten(1))
        return log_prob.view(h.shape[:-1])

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """[..., D]; x, what an autoregressive p(x|h) would see of what comes before, has no effect."""
        return torch.sigmoid(self.logits(h))

    @torch.no_grad()
    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """x ~ p(x|h), one for each row of h [n, 1, n_in], with the noise of models.Noise: [n, 1, D] of 0 and 1."""
        logits = self.logits(h) / temperature
        return (noise.uniform(logits, OUTPUT_STREAM) < torch.sigmoid(logits.double())).to(logits.dtype)

    @torch.no_grad()
    def init_mean(self, mean: Tensor) -> None:
        """Set the biases so that the untrained model's mean is `mean` [D], smoothed away from 0 and 1 (Burda et al. 2015)."""
        self.logits.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


class GaussianOutput(nn.Module):
    """p(x|h) = N(x; mean(h), e^log_var(h))."""

    support: tuple[float, float] | None = None
    autoregressive = False

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.gaussian = GaussianHead(n_in, x_dim, head)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, n_in] and x [B, 1, D] -> log p(x|h) [B, k] in nats."""
        return ops.gaussian_log_prob(x, *self.gaussian(h))

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return self.gaussian(h)[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """x ~ p(x|h), one for each row of h [n, 1, n_in], with the noise of models.Noise: [n, 1, D]."""
        mean, log_var = self.gaussian(h)
        x: Tensor = noise.gaussian((mean, log_var + 2.0 * math.log(temperature)), 1, OUTPUT_STREAM)[0]
        return x

    @torch.no_grad()
    def init_mean(self, mean: Tensor) -> None:
        linear = self.gaussian.mean
        assert isinstance(linear, nn.Linear)  # no output has batch normalisation
        linear.bias.copy_(mean)


OUTPUTS: dict[str, Callable[..., OutputDistribution]] = {
    "bernoulli": BernoulliOutput,
    "gaussian": GaussianOutput,
    "pixelcnn": PixelCNNOutput,
}

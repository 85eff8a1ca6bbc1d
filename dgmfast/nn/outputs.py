"""The output distributions p(x|h) of one decoder layer: Bernoulli and Gaussian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.nn.heads import GaussianHead
from dgmfast.nn.pixelcnn import PixelCNNDecoder, PixelCNNOutput
from dgmfast.nn.plain import is_plain


class BernoulliOutput(nn.Module):
    """p(x|h) = Π_d Bernoulli(x_d; σ(W h + b)_d), of x in [0, 1]."""

    support = (0.0, 1.0)

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
    def start_at(self, mean: Tensor) -> None:
        """Set the biases so that the untrained model's mean is `mean` [D], smoothed away from 0 and 1 (Burda et al. 2015)."""
        self.logits.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


class GaussianOutput(nn.Module):
    """p(x|h) = N(x; mean(h), e^log_var(h))."""

    support = None  # any x

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.gaussian = GaussianHead(n_in, x_dim, head)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, n_in] and x [B, 1, D] -> log p(x|h) [B, k] in nats."""
        return ops.gaussian_log_prob(x, *self.gaussian(h))

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return self.gaussian(h)[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        linear = self.gaussian.mean
        assert isinstance(linear, nn.Linear)  # no output has batch normalisation
        linear.bias.copy_(mean)


AnyOutput = BernoulliOutput | GaussianOutput | PixelCNNDecoder


OUTPUTS: dict[str, Callable[..., AnyOutput]] = {
    "bernoulli": BernoulliOutput,
    "gaussian": GaussianOutput,
    "pixelcnn": PixelCNNOutput,
}

"""Layers: multi-layer perceptrons, Gaussian heads and output distributions, over any leading dimensions [..., features]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmfast import ops
from dgmfast.errors import InputError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


def choose(argument: str, value: str, table: dict[str, Callable]) -> Callable:
    """table[value], or an InputError that lists what there is."""
    if not isinstance(value, str) or value not in table:
        raise InputError(f"{argument} must be one of {', '.join(table)}; got {value!r}")
    return table[value]


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of [..., features] over all leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


class MLP(nn.Sequential):
    """Linear (→ batch norm) → activation, once per entry of `hidden`: [..., n_in] -> [..., hidden[-1]]."""

    def __init__(self, n_in: int, hidden: Sequence[int], activation: str = "tanh", batch_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for n_out in hidden:
            layers.append(nn.Linear(n_in, n_out, bias=not batch_norm))
            if batch_norm:
                layers.append(RowBatchNorm(n_out))
            layers.append(choose("activation", activation, ACTIVATIONS)())
            n_in = n_out
        super().__init__(*layers)
        self.n_out = n_in


def log_softplus(a: Tensor) -> Tensor:
    """log(softplus(a)), finite where softplus underflows: there it equals a."""
    # below −50, a − e^a/2 is a in float64 too, and e^−50 is far above float32's smallest number
    return torch.where(a < -50.0, a, torch.log(F.softplus(a.clamp(min=-50.0))))


# How the second half of a Gaussian head becomes a log-variance (MODELS.md §0: the thesis uses both).
LOG_VAR_HEADS: dict[str, Callable[[Tensor], Tensor]] = {"log_var": lambda a: a, "softplus": log_softplus}


class GaussianHead(nn.Module):
    """[..., n_in] -> (mean, log_var), each [..., n_out].

    `head` is "log_var" (a linear log-variance) or "softplus" (a softplus variance).
    """

    def __init__(self, n_in: int, n_out: int, head: str = "log_var") -> None:
        super().__init__()
        self.mean = nn.Linear(n_in, n_out)
        self.spread = nn.Linear(n_in, n_out)
        self.head = head
        choose("head", head, LOG_VAR_HEADS)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(h), LOG_VAR_HEADS[self.head](self.spread(h))


class GaussianMLP(nn.Module):
    """An MLP with a Gaussian head, a conditional N(mean(h), e^log_var(h)): [..., n_in] -> (mean, log_var), each [..., n_out]."""

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        activation: str = "tanh",
        batch_norm: bool = False,
        head: str = "log_var",
    ) -> None:
        super().__init__()
        self.mlp = MLP(n_in, hidden, activation, batch_norm)
        self.gaussian = GaussianHead(self.mlp.n_out, n_out, head)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.mlp(h))


class BernoulliOutput(nn.Module):
    """p(x|h) = Π_d Bernoulli(x_d; σ(W h + b)_d)."""

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.logits = nn.Linear(n_in, x_dim)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, n_in] and x [B, 1, D] -> log p(x|h) [B, k] in nats."""
        return ops.bernoulli_log_prob(self.logits(h), x)

    def mean(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(h))

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the biases so that the untrained model's mean is `mean` [D], smoothed away from 0 and 1 (Burda et al. 2015)."""
        self.logits.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


class GaussianOutput(nn.Module):
    """p(x|h) = N(x; mean(h), e^log_var(h))."""

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.gaussian = GaussianHead(n_in, x_dim, head)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """h [B, k, n_in] and x [B, 1, D] -> log p(x|h) [B, k] in nats."""
        return ops.gaussian_log_prob(x, *self.gaussian(h))

    def mean(self, h: Tensor) -> Tensor:
        return self.gaussian.mean(h)

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        self.gaussian.mean.bias.copy_(mean)


OUTPUTS: dict[str, Callable[..., BernoulliOutput | GaussianOutput]] = {"bernoulli": BernoulliOutput, "gaussian": GaussianOutput}

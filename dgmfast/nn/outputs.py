"""The output distributions p(x|h): their common interface, and the Bernoulli and Gaussian ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.nn.heads import GaussianHead
from dgmfast.nn.pixelcnn import OUTPUT_STREAM, PixelCNNOutput
from dgmfast.nn.plain import is_plain


class OutputDistribution(Protocol):
    """p(x|h): the interface of a model's `output`.

    `support` is the smallest and the largest value of x, or None if x may be any number. `autoregressive` is true if p(x|h) draws
    each entry of x given the entries before it.
    """

    support: tuple[float, float] | None
    autoregressive: bool

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """log p(x|h) in nats: h [B, k, ...] and x [B, 1, D] -> [B, k]. A label dimension after k is kept."""
        ...

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """The mean of p(x|h), [..., D]. If p(x|h) is autoregressive, the mean of each entry given the entries of x before it."""
        ...

    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Draw x ~ p(x|h) once for each row of h [n, 1, ...]: [n, 1, D].

        Args:
            h: [n, 1, ...].
            noise: The models.Noise to draw from.
            temperature: Divides the logits, or multiplies the standard deviation.
            progress: Called with the number of finished steps and the total number of steps.
        """
        ...

    def init_mean(self, mean: Tensor) -> None:
        """Set the biases of the untrained p(x|h) so that its mean is about `mean` [D]."""
        ...


class BernoulliOutput(nn.Module):
    """p(x|h) = Π_d Bernoulli(x_d; σ(W h + b)_d), for x in [0, 1].

    Args:
        n_in: Size of h.
        x_dim: Size of x, D.
        head: Ignored; it exists because the Gaussian output has it.
    """

    support: tuple[float, float] | None = (0.0, 1.0)
    autoregressive = False

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.logits = nn.Linear(n_in, x_dim)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """log p(x|h) in nats: h [B, k, n_in] and x [B, 1, D] -> [B, k]. A label dimension after k is kept."""
        one_x = h.dim() == x.dim() >= 2 and h.shape[0] == x.shape[0] and all(size == 1 for size in x.shape[1:-1])
        if not one_x or not is_plain(self.logits, nn.Linear, "weight", "bias"):
            return ops.bernoulli_log_prob(self.logits(h), x)
        samples = h.flatten(1, -2) if h.dim() > 2 else h
        log_prob = ops.linear_bernoulli_log_prob(samples, self.logits.weight, self.logits.bias, x.flatten(1))
        return log_prob.view(h.shape[:-1])

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """The mean of p(x|h), [..., D]. x has no effect; only autoregressive outputs use it."""
        return torch.sigmoid(self.logits(h))

    @torch.no_grad()
    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Draw x ~ p(x|h) once for each row of h [n, 1, n_in], with the noise of models.Noise: [n, 1, D] of zeros and ones."""
        logits = self.logits(h) / temperature
        return (noise.uniform(logits, OUTPUT_STREAM) < torch.sigmoid(logits.double())).to(logits.dtype)

    @torch.no_grad()
    def init_mean(self, mean: Tensor) -> None:
        """Set the biases so that the mean of the untrained model is `mean` [D], kept away from 0 and 1 (Burda et al. 2015)."""
        self.logits.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


class GaussianOutput(nn.Module):
    """p(x|h) = N(x; mean(h), e^log_var(h)), a Gaussian head on h.

    Args:
        n_in: Size of h.
        x_dim: Size of x, D.
        head: "log_var" or "softplus" (see `GaussianHead`).
    """

    support: tuple[float, float] | None = None
    autoregressive = False

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__()
        self.gaussian = GaussianHead(n_in, x_dim, head)

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """log p(x|h) in nats: h [B, k, n_in] and x [B, 1, D] -> [B, k]. A label dimension after k is kept."""
        return ops.gaussian_log_prob(x, *self.gaussian(h))

    def mean(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """The mean of p(x|h), [..., D]. x has no effect; only autoregressive outputs use it."""
        return self.gaussian(h)[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Draw x ~ p(x|h) once for each row of h [n, 1, n_in], with the noise of models.Noise: [n, 1, D]."""
        mean, log_var = self.gaussian(h)
        x: Tensor = noise.gaussian((mean, log_var + 2.0 * math.log(temperature)), 1, OUTPUT_STREAM)[0]
        return x

    @torch.no_grad()
    def init_mean(self, mean: Tensor) -> None:
        """Set the bias of the mean, so that the mean of the untrained model is about `mean` [D]."""
        linear = self.gaussian.mean
        assert isinstance(linear, nn.Linear)  # an output's head has no batch normalisation
        linear.bias.copy_(mean)


OUTPUTS: dict[str, Callable[..., OutputDistribution]] = {
    "bernoulli": BernoulliOutput,
    "gaussian": GaussianOutput,
    "pixelcnn": PixelCNNOutput,
}


def register_output(name: str) -> Callable[[type], type]:
    """Class decorator: make an output distribution available to every model as likelihood=`name`.

    The class takes (n_in, x_dim, head) and has the methods of `OutputDistribution`.

    Raises:
        InputError: The name is taken by another class, or a method is missing.
    """

    def add(kind: type) -> type:
        missing = [method for method in ("log_prob", "mean", "sample", "init_mean") if not callable(getattr(kind, method, None))]
        missing += [field for field in ("support", "autoregressive") if not hasattr(kind, field)]
        if missing:
            raise InputError(f"register_output: {kind.__name__} must have {', '.join(missing)}; see nn.OutputDistribution")
        if name in OUTPUTS and not _same(OUTPUTS[name], kind):
            raise InputError(f"register_output: {name!r} must be a new name; it is that of {OUTPUTS[name]}")
        OUTPUTS[name] = kind
        return kind

    return add


def _same(one: Any, other: type) -> bool:
    """True if both are the same class, or one is the other after its module was loaded again."""
    return bool(one.__module__ == other.__module__ and one.__qualname__ == other.__qualname__)

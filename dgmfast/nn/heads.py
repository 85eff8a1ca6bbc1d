"""Conditional distributions of latents: Gaussian and categorical heads on top of an MLP."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmfast.nn.batch_norm import RowBatchNorm
from dgmfast.nn.mlp import MLP, ConditionalMLP, RowWise, lookup


def log_softplus(a: Tensor) -> Tensor:
    """log(softplus(a)), which stays finite where softplus underflows; there it equals a."""
    # log(softplus(a)) ≈ a − e^a/2, which rounds to a below −50 even in float64. e^−50 is far above the smallest float32.
    return torch.where(a < -50.0, a, torch.log(F.softplus(a.clamp(min=-50.0))))


# How the second output of a Gaussian head becomes a log-variance. The thesis uses both forms.
LOG_VAR_HEADS: dict[str, Callable[[Tensor], Tensor]] = {"log_var": lambda a: a, "softplus": log_softplus}


class GaussianHead(nn.Module):
    """Mean and log-variance of a Gaussian, from two linear layers: [..., n_in] -> (mean, log_var), each [..., n_out].

    Args:
        n_in: Size of the input.
        n_out: Size of the latent.
        head: "log_var" for a linear log-variance, or "softplus" for a variance that is the softplus of a linear layer.
        batch_norm: If true, normalise both linear layers (App. B §3: "batch normalization throughout all layers, including the μ
            and σ layers").

    Raises:
        InputError: `head` is unknown.
    """

    def __init__(self, n_in: int, n_out: int, head: str = "log_var", batch_norm: bool = False) -> None:
        super().__init__()
        self.mean: nn.Module = _normed_linear(n_in, n_out, batch_norm)
        self.scale = _normed_linear(n_in, n_out, batch_norm)
        self.head = head
        lookup("head", head, LOG_VAR_HEADS)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename_parameters(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[..., n_in] -> (mean, log_var), each [..., n_out]."""
        return self.mean(h), LOG_VAR_HEADS[self.head](self.scale(h))


def rename_parameters(state_dict: dict[str, Any], prefix: str = "") -> None:
    """Rename, in place, the parameters of Gaussian heads in a state dict of an earlier version to their current names."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        renamed = prefix + re.sub(r"(^|\.)spread\.", r"\1scale.", name[len(prefix) :])
        if renamed != name:
            state_dict[renamed] = state_dict.pop(name)


def _normed_linear(n_in: int, n_out: int, batch_norm: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, n_out, bias=False), RowBatchNorm(n_out)) if batch_norm else nn.Linear(n_in, n_out)


class GaussianMLP(nn.Module):
    """An MLP with a Gaussian head, N(mean(h), e^log_var(h)): [..., n_in] -> (mean, log_var), each [..., n_out].

    Args:
        n_in: Size of the input.
        hidden: Width of each hidden layer.
        n_out: Size of the latent.
        activation: A key of `ACTIVATIONS`.
        batch_norm: If true, normalise the hidden layers.
        head: "log_var" or "softplus" (see `GaussianHead`).
        norm_head: If true, normalise the layers of the head too.
        mlp: A module to use instead of the MLP, with its output's size as `n_out` (see `RowWise`), or None.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        activation: str = "tanh",
        batch_norm: bool = False,
        head: str = "log_var",
        norm_head: bool = False,
        mlp: RowWise | None = None,
    ) -> None:
        super().__init__()
        self.mlp = MLP(n_in, hidden, activation, batch_norm) if mlp is None else mlp
        self.gaussian = GaussianHead(self.mlp.n_out, n_out, head, norm_head)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[..., n_in] -> (mean, log_var), each [..., n_out]."""
        return self.gaussian(self.mlp(h))


class ConditionalGaussian(nn.Module):
    """A Gaussian head on a ConditionalMLP.

    The arguments are those of ConditionalMLP and GaussianHead: n_out is the size of the latent, and norm_head normalises the
    layers of the head.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        activation: str = "relu",
        batch_norm: bool = False,
        head: str = "log_var",
        *,
        n_context: int = 0,
        num_classes: int = 0,
        norm_head: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = ConditionalMLP(n_in, hidden, activation, batch_norm, n_context=n_context, num_classes=num_classes)
        self.gaussian = GaussianHead(self.mlp.n_out, n_out, head, norm_head)

    def context(self, x: Tensor) -> Tensor:
        """See `ConditionalMLP.context`."""
        return self.mlp.context(x)

    def forward(self, h: Tensor, labels: Any = None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The (mean, log_var) at h, each [..., n_out]; the arguments are those of `ConditionalMLP.forward`."""
        return self.gaussian(self.mlp(h, labels, context))


class ConditionalCategorical(nn.Module):
    """log q(y | h, x), normalised: a ConditionalMLP with a linear layer and a log-softmax, [..., n_in] -> [..., Y].

    The arguments are those of ConditionalMLP; num_classes is the number of labels, Y.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        num_classes: int,
        activation: str = "relu",
        batch_norm: bool = False,
        n_context: int = 0,
    ) -> None:
        super().__init__()
        self.mlp = ConditionalMLP(n_in, hidden, activation, batch_norm, n_context=n_context)
        self.logits = nn.Linear(self.mlp.n_out, num_classes)

    def context(self, x: Tensor) -> Tensor:
        """See `ConditionalMLP.context`."""
        return self.mlp.context(x)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-probabilities of the labels at h, [..., n_in] -> [..., Y], with the `context(x)` if the layer has one."""
        return torch.log_softmax(self.logits(self.mlp(h, None, context)), -1)

"""Multi-layer perceptrons over any leading dimensions, [..., features]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.nn.batch_norm import RowBatchNorm, folded_linear
from dgmfast.nn.plain import is_plain

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


_STATELESS = {name: make() for name, make in ACTIVATIONS.items()}


_SETTINGS = {name: {k: v for k, v in vars(module).items() if k not in vars(nn.Module())} for name, module in _STATELESS.items()}


def _is_activation(module: nn.Module, name: str) -> bool:
    """Whether a module is exactly the activation called `name`, with its settings."""
    return is_plain(module, type(_STATELESS[name])) and _SETTINGS[name].items() <= module.__dict__.items()


def activate(name: str, x: Tensor) -> Tensor:
    """The activation called `name` at x."""
    result: Tensor = _STATELESS[name](x)
    return result


def lookup(argument: str, value: str, table: dict[str, Callable]) -> Callable:
    """table[value], or an InputError that lists what there is."""
    if not isinstance(value, str) or value not in table:
        raise InputError(f"{argument} must be one of {', '.join(table)}; got {value!r}")
    return table[value]


def _is_affine(module: nn.Module) -> bool:
    """Whether a module is exactly a linear layer with a bias."""
    return is_plain(module, nn.Linear, "weight", "bias") and module._parameters["bias"] is not None


class MLP(nn.Sequential):
    """Linear (→ batch norm) → activation, once per entry of `hidden`: [..., n_in] -> [..., hidden[-1]].

    A linear layer and its activation are one op where both are as they were made (`is_plain`); any other layer is called.
    """

    def __init__(self, n_in: int, hidden: Sequence[int], activation: str = "tanh", batch_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for n_out in hidden:
            layers.append(nn.Linear(n_in, n_out, bias=not batch_norm))
            if batch_norm:
                layers.append(RowBatchNorm(n_out))
            layers.append(lookup("activation", activation, ACTIVATIONS)())
            n_in = n_out
        super().__init__(*layers)
        self.n_out, self.activation = n_in, activation

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and _is_affine(layer) and _is_activation(layers[0], self.activation):
                layers.pop(0)
                assert isinstance(layer, nn.Linear)
                # act(W x + b) as label_linear of one label, whose weight is b: bias and activation take one pass, both ways
                x = ops.label_linear(x, layer.weight, layer.bias.unsqueeze(1), None, self.activation).squeeze(-2)
            else:
                x = layer(x)
        return x

    def folded(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """(weights, biases) of the layers, with batch normalisation as γ/σ (W h − μ) + β, which is a layer in evaluation.

        None where it takes the statistics of its batch, and where a layer is not exactly what was made (`is_plain`).
        """
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        layers = list(self)
        while layers:
            linear = layers.pop(0)
            norm = layers.pop(0) if layers and isinstance(layers[0], nn.BatchNorm1d) else None
            if not layers or not _is_activation(layers.pop(0), self.activation):
                return None
            if (layer := folded_linear(linear, norm)) is None:
                return None
            weights.append(layer[0])
            biases.append(layer[1])
        return weights, biases


def glorot(module: nn.Module) -> None:
    """Draw all weights from Glorot and Bengio's (2010) uniform distribution, and set the biases to zero (App. A §4)."""
    for layer in module.modules():
        if isinstance(layer, ConditionalMLP):
            layer.reset_parameters(nn.init.xavier_uniform_)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class LabelLinear(nn.Module):
    """A linear layer on [x, onehot(y)] and its activation, for every label at once: [..., n_in] -> [..., Y, n_out].

    The product with x is made once, not once per label (ops.label_linear).
    """

    def __init__(self, n_in: int, n_out: int, num_classes: int, activation: str | None = None) -> None:
        super().__init__()
        joint = nn.Linear(n_in + num_classes, n_out)  # initialised as the one layer that it is
        self.weight = nn.Parameter(joint.weight.detach()[:, :n_in].clone())  # [H, I]
        self.label_weight = nn.Parameter(joint.weight.detach()[:, n_in:].clone())  # [H, Y]
        self.bias = nn.Parameter(joint.bias.detach().clone())
        if activation is not None:
            lookup("activation", activation, ACTIVATIONS)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return ops.label_linear(x, self.weight, self.label_weight, self.bias, self.activation)


class ConditionalMLP(nn.Module):
    """MLP(h, x, y), whose first layer is act(W h + V x + U onehot(y) + b).

    The part V x + b is `context(x)`, [..., H], computed once per x; the label enters as `labels` says (models.labels), so that
    nothing that does not depend on it is computed once per class.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        activation: str = "relu",
        batch_norm: bool = False,
        *,
        n_context: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if not hidden:
            raise InputError("hidden must name at least one layer here; got none")
        width = hidden[0]
        lookup("activation", activation, ACTIVATIONS)
        parts = [torch.empty(width, n) for n in (n_in, n_context, num_classes)]
        self.weight = nn.Parameter(parts[0])
        self.context_weight, self.label_weight = (nn.Parameter(w) if w.shape[1] else None for w in parts[1:])
        self.bias = nn.Parameter(torch.zeros(width))
        self.reset_parameters()
        self.norm = RowBatchNorm(width) if batch_norm else None
        self.activation = activation
        self.rest = MLP(width, hidden[1:], activation, batch_norm)
        self.n_out = self.rest.n_out

    @torch.no_grad()
    def reset_parameters(self, init: Callable[[Tensor], Any] | None = None) -> None:
        """Initialise [W, V, U] by `init` as the weight of one layer, and b with zeros.

        Without `init`, the weight is drawn as nn.Linear draws its weight.
        """
        parts = [w for w in (self.weight, self.context_weight, self.label_weight) if w is not None]
        joint = torch.cat(list(parts), 1)
        if init is None:
            nn.init.kaiming_uniform_(joint, math.sqrt(5))
        else:
            init(joint)
        for part, drawn in zip(parts, joint.split([w.shape[1] for w in parts], 1), strict=True):
            part.copy_(drawn)
        self.bias.zero_()

    def context(self, x: Tensor) -> Tensor:
        """V x + b: [B, n_context] -> [B, 1, H], for all samples of a row; or [B, k, n_context] -> [B, k, H]."""
        assert self.context_weight is not None
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                hook(self, ())  # These set a weight when forward is called, which comes later.
        return F.linear(x if x.dim() == 3 else x.unsqueeze(1), self.context_weight, self.bias)

    def forward(self, h: Tensor, labels: Any = None, context: Tensor | None = None) -> Tensor:
        """h [..., n_in], with a `context` where the layer has one -> [..., n_out], labelled where `labels` are given."""
        bias = self.bias if context is None else context
        first = "identity" if self.norm is not None else self.activation
        if labels is None:
            h = activate(first, F.linear(h, self.weight) + bias)
        else:
            if labels.joins_rows and self.norm is not None and self.training:
                raise InputError("a sparse label sum and batch normalisation in training exclude each other: take the exact sum")
            h = labels.linear(h, self.weight, self.label_weight, bias, first)
        if self.norm is not None:
            h = activate(self.activation, self.norm(h))
        return self.rest(h)

"""Multi-layer perceptrons on tensors [..., features] with any leading dimensions."""

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
from dgmfast.plugins import load_plugins

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
    """True if the module is exactly the activation called `name`, with the same settings."""
    return is_plain(module, type(_STATELESS[name])) and _SETTINGS[name].items() <= module.__dict__.items()


def activate(name: str, x: Tensor) -> Tensor:
    """Apply the activation called `name` to x."""
    result: Tensor = _STATELESS[name](x)
    return result


def lookup(argument: str, value: str, table: dict[str, Callable]) -> Callable:
    """Return table[value]. Plugins may add to the table (see `plugins`).

    Raises:
        InputError: `value` is not a key of the table. The message names `argument` and lists the keys.
    """
    if isinstance(value, str) and value not in table:
        load_plugins()
    if not isinstance(value, str) or value not in table:
        raise InputError(f"{argument} must be one of {', '.join(table)}; got {value!r}")
    return table[value]


class RowWise(nn.Module):
    """Apply a module for rows [N, n_in] to any leading dimensions, and flatten its output: [..., n_in] -> [..., n_out].

    Args:
        module: The module. A convolutional one begins with nn.Unflatten(1, (C, H, W)).
        n_in: Size of its input.
        argument: What an error calls the module.

    Raises:
        InputError: The module cannot be called with [2, n_in], or gives something else than a tensor with two rows.
    """

    def __init__(self, module: nn.Module, n_in: int, argument: str) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(f"{argument} must be an nn.Module; got {type(module).__name__}")
        self.module = module
        parameter = next(module.parameters(), torch.zeros(()))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                training = module.training
                out = module.eval()(parameter.new_zeros(2, n_in))
                module.train(training)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{argument} must take rows [N, {n_in}]; called with [2, {n_in}] it raised: {reason}") from error
        if not isinstance(out, Tensor) or out.dim() < 2 or len(out) != 2:
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"{argument} must give a tensor [N, ...] for rows [N, {n_in}]; got {got} for [2, {n_in}]")
        self.n_out = math.prod(out.shape[1:])

    def forward(self, h: Tensor) -> Tensor:
        """[..., n_in] -> [..., n_out]."""
        rows: Tensor = self.module(h.flatten(0, -2))
        return rows.view(*h.shape[:-1], self.n_out)


def _is_affine(module: nn.Module) -> bool:
    """True if the module is exactly a linear layer with a bias."""
    return is_plain(module, nn.Linear, "weight", "bias") and module._parameters["bias"] is not None


class MLP(nn.Sequential):
    """Linear (→ batch norm) → activation, once per entry of `hidden`: [..., n_in] -> [..., hidden[-1]].

    A linear layer and the activation after it run as one op while both are unmodified (see `is_plain`). Modified layers are
    called as modules.

    Args:
        n_in: Size of the input.
        hidden: Width of each layer. Without layers, the MLP returns its input.
        activation: A key of `ACTIVATIONS`.
        batch_norm: If true, normalise before each activation; the linear layers then have no bias.

    Raises:
        InputError: The activation is unknown.
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
        """[..., n_in] -> [..., n_out]."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and _is_affine(layer) and _is_activation(layers[0], self.activation):
                layers.pop(0)
                assert isinstance(layer, nn.Linear)
                # act(W x + b) is label_linear with a single label whose weight is b. Bias and activation then take one pass over
                # memory, forward and backward.
                x = ops.label_linear(x, layer.weight, layer.bias.unsqueeze(1), None, self.activation).squeeze(-2)
            else:
                x = layer(x)
        return x

    def folded(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """(weights, biases) of the layers, with batch normalisation folded into them; None if that is not possible.

        In evaluation, batch normalisation is the linear layer γ/σ (W h − μ) + β. It cannot be folded while it uses the statistics
        of the batch, and no layer can be read if it was modified (see `is_plain`).
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
    """Draw all weights from the uniform distribution of Glorot and Bengio (2010), and set all biases to zero (App. A §4)."""
    for layer in module.modules():
        if isinstance(layer, ConditionalMLP):
            layer.reset_parameters(nn.init.xavier_uniform_)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class LabelLinear(nn.Module):
    """Linear layer on [x, onehot(y)] with its activation, for every label y at once: [..., n_in] -> [..., Y, n_out].

    The product with x is computed once for all labels (see ops.label_linear).

    Args:
        n_in: Size of x.
        n_out: Size of the output.
        num_classes: Number of labels, Y.
        activation: A key of `ACTIVATIONS`, or None.

    Raises:
        InputError: The activation is unknown.
    """

    def __init__(self, n_in: int, n_out: int, num_classes: int, activation: str | None = None) -> None:
        super().__init__()
        joint = nn.Linear(n_in + num_classes, n_out)  # both parts are initialised as one layer
        self.weight = nn.Parameter(joint.weight.detach()[:, :n_in].clone())  # [H, I]
        self.label_weight = nn.Parameter(joint.weight.detach()[:, n_in:].clone())  # [H, Y]
        self.bias = nn.Parameter(joint.bias.detach().clone())
        if activation is not None:
            lookup("activation", activation, ACTIVATIONS)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., n_in] -> [..., Y, n_out]."""
        return ops.label_linear(x, self.weight, self.label_weight, self.bias, self.activation)


class ConditionalMLP(nn.Module):
    """MLP on h, x and a label y, whose first layer is act(W h + V x + U onehot(y) + b).

    `context(x)` computes V x + b once per x. The label is added by a `models.labels.Labels` object, so that whatever does not
    depend on the label is computed once and not once per class.

    Args:
        n_in: Size of h.
        hidden: Width of each layer, at least one.
        activation: A key of `ACTIVATIONS`.
        batch_norm: If true, normalise before each activation.
        n_context: Size of x; 0 if the layer has no context.
        num_classes: Number of labels, Y; 0 if the layer has no label.

    Raises:
        InputError: `hidden` is empty, or the activation is unknown.
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
        """Initialise [W, V, U] by `init` as the weight of a single layer, and b with zeros.

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
        """V x + b: [B, n_context] -> [B, 1, H], shared by all samples of a row; or [B, k, n_context] -> [B, k, H]."""
        assert self.context_weight is not None
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                # These hooks set a weight when forward is called, but the weight is needed here already.
                hook(self, ())
        return F.linear(x if x.dim() == 3 else x.unsqueeze(1), self.context_weight, self.bias)

    def forward(self, h: Tensor, labels: Any = None, context: Tensor | None = None) -> Tensor:
        """h [..., n_in] -> [..., n_out]; with `labels`, the output has the labelled shape that `labels` defines.

        Args:
            h: [..., n_in].
            labels: A `models.labels.Labels`, or None if the layer has no label.
            context: The result of `context(x)`, if the layer has a context.

        Raises:
            InputError: A sparse label sum is used while batch normalisation is in training.
        """
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

"""Layers: multi-layer perceptrons, Gaussian heads and output distributions, over any leading dimensions [..., features]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dgmfast import ops
from dgmfast._conv import MaskedConv2d as MaskedConv2d
from dgmfast._norm import RowBatchNorm as RowBatchNorm
from dgmfast._norm import folded_linear
from dgmfast._norm import frozen_statistics as frozen_statistics
from dgmfast._norm import normalises as normalises
from dgmfast._pixelcnn import PixelCNNDecoder, PixelCNNOutput
from dgmfast._plain import is_plain
from dgmfast.errors import InputError

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


def choose(argument: str, value: str, table: dict[str, Callable]) -> Callable:
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
            layers.append(choose("activation", activation, ACTIVATIONS)())
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
            layer.start(nn.init.xavier_uniform_)
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
            choose("activation", activation, ACTIVATIONS)
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
        choose("activation", activation, ACTIVATIONS)
        parts = [torch.empty(width, n) for n in (n_in, n_context, num_classes)]
        self.weight = nn.Parameter(parts[0])
        self.context_weight, self.label_weight = (nn.Parameter(w) if w.shape[1] else None for w in parts[1:])
        self.bias = nn.Parameter(torch.zeros(width))
        self.start(lambda weight: nn.init.kaiming_uniform_(weight, math.sqrt(5)))  # as nn.Linear
        self.norm = RowBatchNorm(width) if batch_norm else None
        self.activation = activation
        self.rest = MLP(width, hidden[1:], activation, batch_norm)
        self.n_out = self.rest.n_out

    @torch.no_grad()
    def start(self, init: Callable[[Tensor], Any]) -> None:
        """Draw [W, V, U] by `init` as the one layer that they are, and set b to zero."""
        parts = [w for w in (self.weight, self.context_weight, self.label_weight) if w is not None]
        joint = torch.cat(list(parts), 1)
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


def log_softplus(a: Tensor) -> Tensor:
    """log(softplus(a)), finite where softplus underflows: there it equals a."""
    # below −50, a − e^a/2 is a in float64 too, and e^−50 is far above float32's smallest number
    return torch.where(a < -50.0, a, torch.log(F.softplus(a.clamp(min=-50.0))))


# How the second half of a Gaussian head becomes a log-variance (MODELS.md §0: the thesis uses both).
LOG_VAR_HEADS: dict[str, Callable[[Tensor], Tensor]] = {"log_var": lambda a: a, "softplus": log_softplus}


class GaussianHead(nn.Module):
    """[..., n_in] -> (mean, log_var), each [..., n_out].

    `head` is "log_var" (a linear log-variance) or "softplus" (a softplus variance). batch_norm: normalise both linear layers
    (App. B §3: "batch normalization throughout all layers, including the μ and σ layers").
    """

    def __init__(self, n_in: int, n_out: int, head: str = "log_var", batch_norm: bool = False) -> None:
        super().__init__()
        self.mean: nn.Module = _normed_linear(n_in, n_out, batch_norm)
        self.spread = _normed_linear(n_in, n_out, batch_norm)
        self.head = head
        choose("head", head, LOG_VAR_HEADS)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(h), LOG_VAR_HEADS[self.head](self.spread(h))


def _normed_linear(n_in: int, n_out: int, batch_norm: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, n_out, bias=False), RowBatchNorm(n_out)) if batch_norm else nn.Linear(n_in, n_out)


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
        norm_head: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = MLP(n_in, hidden, activation, batch_norm)
        self.gaussian = GaussianHead(self.mlp.n_out, n_out, head, norm_head)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.mlp(h))


class ConditionalGaussian(nn.Module):
    """N(mean, e^log_var) of a ConditionalMLP's output: the same arguments, and the head's size n_out."""

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
        """As ConditionalMLP.context."""
        return self.mlp.context(x)

    def forward(self, h: Tensor, labels: Any = None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.mlp(h, labels, context))


class ConditionalCategorical(nn.Module):
    """log q(y | h, x), normalised, of a ConditionalMLP's output: [..., n_in] -> [..., Y]."""

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
        """As ConditionalMLP.context."""
        return self.mlp.context(x)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.log_softmax(self.logits(self.mlp(h, None, context)), -1)


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
MOST_LAYERS = 16  # of ops.mlp_bernoulli_log_prob


def fused_layers(decoder: nn.Module, output: nn.Module, device: torch.device) -> tuple[list[Tensor], list[Tensor]] | None:
    """The weights and biases that `decode` hands to ops.mlp_bernoulli_log_prob, or None where it calls the modules.

    It does so on a CPU for an MLP and a BernoulliOutput that are exactly that, with all that they hold (`is_plain`); an MLP with
    batch normalisation must be in evaluation.
    """
    if device.type != "cpu" or not is_plain(decoder, MLP) or not is_plain(output, BernoulliOutput):
        return None
    assert isinstance(decoder, MLP) and isinstance(output, BernoulliOutput)
    logits, layers = output.logits, decoder.folded()
    if layers is None or len(layers[0]) >= MOST_LAYERS or not _is_affine(logits):
        return None
    return [*layers[0], logits.weight], [*layers[1], logits.bias]


def decode(decoder: nn.Module, output: AnyOutput, z: Tensor, x: Tensor) -> tuple[Tensor | Callable[[], Tensor], Tensor]:
    """h = decoder(z), or a function that makes it, and the output's log p(x|h) [B, k]: z [B, k, n] and x [B, 1, D].

    Under torch.no_grad a Bernoulli decoder is one op, where it can be (`fused_layers`), and h is made when it is asked for.
    """
    layers = None if torch.is_grad_enabled() else fused_layers(decoder, output, z.device)
    if layers is None:
        h = decoder(z)
        return h, output.log_prob(h, x)
    assert isinstance(decoder, MLP)
    weights, biases = layers
    log_prob = ops.mlp_bernoulli_log_prob(z, weights, biases, x.flatten(1), decoder.activation)
    return partial(_hidden, z, weights[:-1], biases[:-1], decoder.activation), log_prob


@torch.no_grad()
def _hidden(h: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str) -> Tensor:
    """What the layers make of h: [..., n_in] -> [..., n_out]."""
    for weight, bias in zip(weights, biases, strict=True):
        h = activate(activation, F.linear(h, weight, bias))
    return h

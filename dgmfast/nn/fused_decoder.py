"""log p(x|z) of a whole Bernoulli decoder as one op, where its layers allow it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmfast import _C, ops
from dgmfast.nn.mlp import MLP, _is_affine, activate
from dgmfast.nn.outputs import BernoulliOutput, OutputDistribution
from dgmfast.nn.plain import is_plain

MOST_LAYERS: int = _C.max_mlp_layers


def fused_layers(decoder: nn.Module, output: object, device: torch.device) -> tuple[list[Tensor], list[Tensor]] | None:
    """The weights and biases that `decode` hands to ops.mlp_bernoulli_log_prob, or None where it calls the modules.

    It does so on a CPU for an MLP and a BernoulliOutput that are exactly that, with all that they hold (`is_plain`); an MLP with
    batch normalisation must be in evaluation.
    """
    if device.type != "cpu" or not isinstance(decoder, MLP) or not isinstance(output, BernoulliOutput):
        return None
    if not is_plain(decoder, MLP) or not is_plain(output, BernoulliOutput):
        return None
    logits, layers = output.logits, decoder.folded()
    if layers is None or len(layers[0]) >= MOST_LAYERS or not _is_affine(logits):
        return None
    return [*layers[0], logits.weight], [*layers[1], logits.bias]


def fused_modules(decoder: nn.Module, output: object, device: torch.device) -> list[nn.Module]:
    """The modules whose work `decode` does by one op on a device, in evaluation: none, or those of both."""
    if fused_layers(decoder, output, device) is None:
        return []
    assert isinstance(output, nn.Module)
    return [*decoder.modules(), *output.modules()]


def decode(decoder: nn.Module, output: OutputDistribution, z: Tensor, x: Tensor) -> tuple[Tensor | Callable[[], Tensor], Tensor]:
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

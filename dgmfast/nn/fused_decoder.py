"""log p(x|z) of a whole Bernoulli decoder as a single op, if its layers allow it."""

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
    """The weights and biases that `decode` passes to ops.mlp_bernoulli_log_prob, or None if `decode` calls the modules.

    The op is used on a CPU, for an MLP and a BernoulliOutput that are unmodified, with all their submodules (see `is_plain`). An
    MLP with batch normalisation must be in evaluation mode.
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
    """The modules that `decode` replaces by one op on this device in evaluation: all modules of decoder and output, or none."""
    if fused_layers(decoder, output, device) is None:
        return []
    assert isinstance(output, nn.Module)
    return [*decoder.modules(), *output.modules()]


def decode(decoder: nn.Module, output: OutputDistribution, z: Tensor, x: Tensor) -> tuple[Tensor | Callable[[], Tensor], Tensor]:
    """Decode z and compute the output's log-probability.

    Under torch.no_grad a Bernoulli decoder runs as a single op, if `fused_layers` allows it. h is then computed only when it is
    asked for.

    Args:
        decoder: The network that maps z to h.
        output: The distribution p(x|h).
        z: [B, k, n].
        x: [B, 1, D].

    Returns:
        h = decoder(z), or a function that computes it, and log p(x|h) [B, k] in nats.
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
    """The output of the layers for the input h: [..., n_in] -> [..., n_out]."""
    for weight, bias in zip(weights, biases, strict=True):
        h = activate(activation, F.linear(h, weight, bias))
    return h

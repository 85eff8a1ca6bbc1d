"""Bernoulli log-likelihoods, computed from logits, from the linear layer that makes the logits, or from the whole decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from dgmfast import _C
from dgmfast.ops.call import HALVES, REFUSALS, check, compiled, is_compiling, retry
from dgmfast.ops.labels import label_linear


def bernoulli_log_prob(logits: Tensor | None = None, x: Tensor | None = None, probs: Tensor | None = None) -> Tensor:
    """Log-probability of x under independent Bernoulli variables, given by their logits or by their probabilities, in nats.

    Computes Σ_d x_d l_d − log(1 + e^{l_d}) for the logits l, in the stable form x_d l_d − max(l_d, 0) − log(1 + e^{−|l_d|}).
    For probabilities p it computes Σ_d x_d log p_d + (1 − x_d) log(1 − p_d).

    Args:
        logits: [..., D], floating point. Leave it out if probs is given.
        x: [..., D] with values in [0, 1]: the dtype of logits, or bool or uint8 with values 0 and 1. Leading dimensions
            broadcast against those of logits. The values of x are not checked.
        probs: [..., D] with values in [0, 1], in place of logits. The values are not checked. A p of 0 becomes the smallest
            normal number (1.2e-38 in float32), and a p of 1 the largest number below 1. This form is plain PyTorch, slower than
            that of logits. `bernoulli_log_prob(torch.logit(probs), x)` is fast too, but it is NaN where p is 0 or 1 and x
            agrees, and its gradients lose digits near p = 1.

    Returns:
        [...], summed over D. Gradients flow to logits or probs, and to a floating-point x. A second derivative with
        respect to logits raises NotImplementedError. 16-bit tensors on the CPU are computed in float32, and the results are
        rounded.

    Raises:
        ValueError: The shapes do not fit, the tensors are on different devices, or both logits and probs are given.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: log p(x|z) of thesis eq. 3.11 for binary data.
    """
    if probs is not None:
        return _from_probs(logits, x, probs)
    if is_compiling():
        return compiled("bernoulli_log_prob", (logits, x))
    try:
        return _C.bernoulli_log_prob(logits, x)
    except REFUSALS as error:
        return retry(bernoulli_log_prob, error, {"logits": logits, "x": x})


def _from_probs(logits: Tensor | None, x: Any, probs: Any) -> Tensor:
    """Σ_d x_d log p_d + (1 − x_d) log(1 − p_d), with p moved inside (0, 1)."""
    if logits is not None:
        raise ValueError("bernoulli_log_prob: logits or probs must be None; got both")
    if isinstance(x, Proxy) or isinstance(probs, Proxy):
        return handle_torch_function(bernoulli_log_prob, (x, probs), None, x, probs=probs)
    check("bernoulli_log_prob", {"probs": probs, "x": x})
    try:  # the op of logits makes the other checks, and tells the dtype of the result
        dtype = bernoulli_log_prob(probs.detach(), x.detach()).dtype
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("logits", "probs")) from None
    p = probs.float() if probs.dtype in HALVES else probs
    limits = torch.finfo(p.dtype)
    inside = p + (p.clamp(limits.tiny, 1.0 - 0.5 * limits.eps) - p).detach()  # a sure p has a gradient too
    x = x.to(p.dtype)
    return (x * inside.log() + (1.0 - x) * torch.log1p(-inside)).sum(-1).to(dtype)


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Log-probability of x under independent Bernoulli(σ(W h + b)) variables, in nats: a decoder's last layer and its likelihood.

    Computes Σ_d x_d l_d − log(1 + e^{l_d}) with l = W h + b, block by block, so that the full matrix of logits is never in
    memory. The exception is a forward pass that needs gradients and has at most 4 Mi (2²²) logits: it keeps them for the
    backward pass, which otherwise computes them again.

    Args:
        h: [B, H], or [B, K, H] for K samples of each row.
        weight: [D, H], of the dtype and device of h.
        bias: [D], of the dtype and device of h, or None.
        x: [B, D] with values in [0, 1]: the dtype of h, or bool or uint8 with values 0 and 1. Each row is shared by its K
            samples. The values of x are not checked.

    Returns:
        [B] or [B, K], summed over D. The dtype is float64 if h is float64, and float32 otherwise, because 16 bits cannot
        represent a sum of hundreds of nats. Gradients flow to h, weight, bias and a floating-point x. A second derivative
        raises NotImplementedError. Under autocast the product has the precision of `torch.nn.functional.linear` on CUDA, and
        float32 on the CPU. Results and gradients agree to rounding for any number of threads. For a given shape, the bits of a
        row do not depend on the other rows.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: log p(x|z) of thesis eq. 3.11 for binary data, with the decoder's last layer.
    """
    if is_compiling():
        return compiled("linear_bernoulli_log_prob", (h, weight, bias, x), rounded=False)
    try:
        return _C.linear_bernoulli_log_prob(h, weight, bias, x)
    except REFUSALS as error:
        arguments = {"h": h, "weight": weight, "bias": bias, "x": x}
        return retry(linear_bernoulli_log_prob, error, arguments, optional=("bias",), rounded=False)


def mlp_bernoulli_log_prob(
    h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, activation: str | None = None
) -> Tensor:
    """Log-probability of x under a whole Bernoulli decoder, in nats: its hidden layers, its logits and its likelihood.

    Computes log p(x|h) = Σ_d x_d l_d − log(1 + e^{l_d}) with l = W_n h_{n−1} + b_n, h_i = act(W_i h_{i−1} + b_i) and h_0 = h.
    On a CPU without gradients, a tile of rows goes through all layers in cache, and neither the activations nor the logits are
    written to memory as a whole. For a single row this is slower than calling the layers one by one.

    Args:
        h: [B, H_0], or [B, K, H_0] for K samples of each row.
        weights: One [H_i, H_{i−1}] per layer, at most 16 layers; the last one is [D, H_{n−1}].
        biases: One [H_i] per layer. All floating-point tensors share one dtype and device.
        x: [B, D] with values in [0, 1]: the dtype of h, or bool or uint8 with values 0 and 1. Each row is shared by its K
            samples. The values of x are not checked.
        activation: The activation of every layer except the last: None, "relu", "leaky_relu" (slope 0.1), "tanh", "softplus",
            "elu", or "identity", which is the same as None.

    Returns:
        [B] or [B, K], summed over D, in float64 if h is float64 and in float32 otherwise. When a gradient is needed, and on CUDA,
        the op calls `label_linear` and `linear_bernoulli_log_prob`; gradients then flow to h, weights, biases and a
        floating-point x. A second derivative raises NotImplementedError. On a CPU without gradients, the bits of a row depend
        only on that row. With gradients the sums are taken in another order, so that the bits are those of the two other ops.

    Raises:
        ValueError: The shapes do not fit, there is no layer or more than 16, the numbers of weights and biases differ, the
            activation is unknown, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: log p(x|z) of thesis eq. 3.11 for binary data, with its decoder.
    """
    weights, biases = _listed("weights", weights), _listed("biases", biases)
    if is_compiling():
        flat = (h, *weights, *biases, x)
        return compiled("mlp_bernoulli_log_prob", flat, activation, rounded=False, pack=partial(_packed, len(weights)))
    try:
        return _C.mlp_bernoulli_log_prob(h, weights, biases, x, activation)
    except REFUSALS as error:
        if not (activation is None or isinstance(activation, str)):
            raise TypeError(
                f"mlp_bernoulli_log_prob: activation must be None or a string; got {type(activation).__name__}"
            ) from None
        lists = {f"{name}[{i}]": t for name, ts in (("weights", weights), ("biases", biases)) for i, t in enumerate(ts)}
        arguments, pack = {"h": h, **lists, "x": x}, partial(_packed, len(weights))
        return retry(mlp_bernoulli_log_prob, error, arguments, activation, rounded=False, pack=pack, functional=_by_layers)


def _packed(layers: int, flat: Sequence[Any]) -> tuple[Any, list[Any], list[Any], Any]:
    """h, weights, biases and x from all tensors in a row."""
    h, *both, x = flat
    return h, both[:layers], both[layers:], x


def _by_layers(h: Tensor, weights: list[Tensor], biases: list[Tensor], x: Tensor, activation: str | None) -> Tensor:
    """The decoder from the two ops that it consists of, which have gradients under torch.func."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = label_linear(h, weight, bias.unsqueeze(1), None, activation).squeeze(-2)
    return linear_bernoulli_log_prob(h, weights[-1], biases[-1], x)


def _listed(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as a list. Raises TypeError, naming the argument `name`, if they are not iterable."""
    try:
        return list(tensors)
    except TypeError:
        raise TypeError(f"mlp_bernoulli_log_prob: {name} must be a list of tensors; got {type(tensors).__name__}") from None

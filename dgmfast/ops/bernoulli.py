"""Bernoulli log-likelihoods, computed from logits, from the linear layer that makes the logits, or from the whole decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of x under independent Bernoulli(σ(logits)) variables, in nats.

    Computes Σ_d x_d l_d − log(1 + e^{l_d}) for the logits l, in the stable form x_d l_d − max(l_d, 0) − log(1 + e^{−|l_d|}).

    Args:
        logits: [..., D], floating point.
        x: [..., D] with values in [0, 1]: the dtype of logits, or bool or uint8 with values 0 and 1. Leading dimensions
            broadcast against those of logits. The values of x are not checked.

    Returns:
        [...], summed over D. Gradients flow to logits and to a floating-point x. A second derivative raises
        NotImplementedError.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: log p(x|z) of thesis eq. 3.11 for binary data.
    """
    if is_compiling():
        return torch.ops.dgmfast.bernoulli_log_prob(logits, x)
    try:
        return _C.bernoulli_log_prob(logits, x)
    except TypeError as error:
        raise not_a_tensor("bernoulli_log_prob", error, logits=logits, x=x) from None


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
        return torch.ops.dgmfast.linear_bernoulli_log_prob(h, weight, bias, x)
    try:
        return _C.linear_bernoulli_log_prob(h, weight, bias, x)
    except TypeError as error:
        given = {} if bias is None else {"bias": bias}
        raise not_a_tensor("linear_bernoulli_log_prob", error, h=h, weight=weight, **given, x=x) from None


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
        return torch.ops.dgmfast.mlp_bernoulli_log_prob(h, weights, biases, x, activation)
    try:
        return _C.mlp_bernoulli_log_prob(h, weights, biases, x, activation)
    except TypeError as error:
        if not (activation is None or isinstance(activation, str)):
            raise TypeError(
                f"mlp_bernoulli_log_prob: activation must be None or a string; got {type(activation).__name__}"
            ) from None
        lists = {f"{name}[{i}]": t for name, ts in (("weights", weights), ("biases", biases)) for i, t in enumerate(ts)}
        raise not_a_tensor("mlp_bernoulli_log_prob", error, h=h, **lists, x=x) from None


def _listed(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as a list. Raises TypeError, naming the argument `name`, if they are not iterable."""
    try:
        return list(tensors)
    except TypeError:
        raise TypeError(f"mlp_bernoulli_log_prob: {name} must be a list of tensors; got {type(tensors).__name__}") from None

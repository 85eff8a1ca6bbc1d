"""Bernoulli likelihoods, parameterised by logits, by the linear layer that makes them, or by the whole decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of x under independent Bernoulli(σ(logits)) variables, in nats.

    Σ_d x_d l_d − log(1 + e^{l_d}), evaluated as x_d l_d − max(l_d, 0) − log(1 + e^{−|l_d|}).

    Args:
        logits: [..., D], floating. x: [..., D] in [0, 1] of the dtype of logits, or bool or uint8 0/1; leading dimensions
            broadcast. Values of x are not checked.

    Returns:
        [...], summed over D. Gradients flow to logits and to a floating x; a second derivative raises.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

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

    Σ_d x_d l_d − log(1 + e^{l_d}) with l = W h + b, block by block: the logits are never in memory as a whole, except for a
    backward pass that needs no more than 4 Mi of them, which keeps them instead of computing them again.

    Args:
        h: [B, H], or [B, K, H] for K samples of each row. weight: [D, H]. bias: [D] or None. One floating dtype and device.
        x: [B, D] in [0, 1] of the dtype of h, or bool or uint8 0/1; one row serves its K samples. Values are not checked.

    Returns:
        [B] or [B, K], summed over D: float64 where h is, else float32, because 16 bits hold no sum of hundreds of nats.
        Gradients flow to h, weight, bias and a floating x; a second derivative raises. Under autocast the product has the
        precision of `torch.nn.functional.linear` on CUDA, and float32 on the CPU. Results and gradients do not depend on the
        number of threads but to rounding, and within one shape a row's bits do not depend on the other rows.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

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
    """Log-probability of x under the Bernoulli variables of a whole decoder, in nats: its hidden layers, logits and likelihood.

    log p(x|h) = Σ_d x_d l_d − log(1 + e^{l_d}) with l = W_n h_{n−1} + b_n, h_i = act(W_i h_{i−1} + b_i) and h_0 = h. On a CPU a
    tile of rows goes through all layers in cache, and neither activations nor logits are ever in memory; a row alone takes longer
    than layer by layer.

    Args:
        h: [B, H_0], or [B, K, H_0] for K samples of each row. weights: [H_i, H_{i−1}] of each layer, the last one [D, H_{n−1}];
            at most 16. biases: as many, [H_i]. One floating dtype and device.
        x: [B, D] in [0, 1] of the dtype of h, or bool or uint8 0/1; one row serves its K samples. Values are not checked.
        activation: of all layers but the last: None, "relu", "leaky_relu" (of slope 0.1), "tanh", "softplus", "elu", or
            "identity", which is None.

    Returns:
        [B] or [B, K], summed over D: float64 where h is, else float32. Where a gradient is wanted, and on CUDA, it is made of
        `label_linear` and `linear_bernoulli_log_prob`, whose gradients flow to h, weights, biases and a floating x; a second
        derivative raises. On a CPU, without gradients, a row's bits depend on nothing but that row; with gradients they are those
        of the two ops, whose sums have another order.

    Raises:
        ValueError: shapes do not fit, no layer or more than 16, not as many biases as weights, an activation that is none of
        these, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

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
    try:
        return list(tensors)
    except TypeError:
        raise TypeError(f"mlp_bernoulli_log_prob: {name} must be a list of tensors; got {type(tensors).__name__}") from None

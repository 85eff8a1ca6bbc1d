"""What models with a label y pay for: a layer for every label at once, and the sum over the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor


def marginalize_labels(logits: Tensor, values: Tensor) -> Tensor:
    """Expectation over a label of its value, plus the label's entropy, in nats.

    Σ_y q_y (values_y − log q_y) with q = softmax(logits).

    Args:
        logits, values: [..., Y], one floating dtype and device; leading dimensions broadcast.

    Returns:
        [...], summed over Y. Gradients flow to both; a second derivative raises.
        A label that is impossible (q_y = 0, also by a logit of −∞) adds nothing, if its value is finite.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

    Source: the bound of unlabelled data, thesis eq. 4.20.
    """
    if is_compiling():
        return torch.ops.dgmfast.marginalize_labels(logits, values)
    try:
        return _C.marginalize_labels(logits, values)
    except TypeError as error:
        raise not_a_tensor("marginalize_labels", error, logits=logits, values=values) from None


def label_linear(
    x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """A linear layer on (x, onehot(y)) and its activation, for every label y, with one product for all of them.

    out[..., y, :] = act(W x + bias + label_weight[:, y]).

    Args:
        x: [..., I]. weight: [H, I]. label_weight: [H, Y]. One floating dtype and device.
        bias: None, [H], or [..., H] with leading dimensions that broadcast against those of x: the share of further inputs,
            for example [B, 1, H] of one input per row beside x [B, k, I] of k samples per row.
        activation: None, "relu", "leaky_relu" (of slope 0.1), "tanh", "softplus", "elu", or "identity", which is None.

    Returns:
        [..., Y, H]. Gradients flow to all four; a second derivative raises. Under autocast the dtype is that of
        `torch.nn.functional.linear` on CUDA, and float32 on the CPU.

    Raises:
        ValueError: shapes do not fit, an activation that is none of these, or tensors on two devices.
        TypeError: a dtype that is not supported, or mixed dtypes.

    Source: the networks of thesis eqs 4.17–4.20 on [x, y]; W [x; onehot(y)] = W_x x + W_y[:, y].
    """
    if is_compiling():
        return torch.ops.dgmfast.label_linear(x, weight, label_weight, bias, activation)
    try:
        return _C.label_linear(x, weight, label_weight, bias, activation)
    except TypeError as error:
        if not (activation is None or isinstance(activation, str)):
            raise TypeError(f"label_linear: activation must be None or a string; got {type(activation).__name__}") from None
        given = {} if bias is None else {"bias": bias}
        raise not_a_tensor("label_linear", error, x=x, weight=weight, label_weight=label_weight, **given) from None

"""What models with a label y pay for: a layer for every label at once, and the sum over the labels."""

from __future__ import annotations

from torch import Tensor

from dgmfast import reference


def marginalize_labels(logits: Tensor, values: Tensor) -> Tensor:
    """Expectation over a label of its value, plus the label's entropy, in nats.

    Σ_y q_y (values_y − log q_y) with q = softmax(logits).

    Args:
        logits, values: [..., Y], one floating dtype and device; leading dimensions broadcast.

    Returns:
        [...], summed over Y. Gradients flow to both; a second derivative raises.
        A label that is impossible (q_y = 0, also by a logit of −∞) adds nothing, if its value is finite.

    Raises:
        ValueError: shapes do not fit, no label, or tensors on two devices.
        TypeError: a dtype that is not supported, or mixed dtypes.

    Source: the bound of unlabelled data, thesis eq. 4.20.
    """
    return reference.marginalize_labels(logits, values)


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
    return reference.label_linear(x, weight, label_weight, bias, activation)

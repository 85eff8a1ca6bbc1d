"""Ops for models with a label y: a linear layer for every label at once, and the expectation over the label."""

from __future__ import annotations

from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import REFUSALS, compiled, is_compiling, retry


def marginalize_labels(logits: Tensor, values: Tensor) -> Tensor:
    """Expectation over a label of its value, plus the entropy of the label, in nats.

    Computes Σ_y q_y (values_y − log q_y) with q = softmax(logits).

    Args:
        logits: [..., Y], floating point.
        values: [..., Y], of the same dtype and device; leading dimensions broadcast.

    Returns:
        [...], summed over Y. Gradients flow to both arguments. A second derivative raises NotImplementedError. A label of
        probability 0 (q_y underflows, or its logit is −∞) adds nothing if its value is finite. 16-bit tensors on the CPU are
        computed in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: the bound of unlabelled data, thesis eq. 4.20.
    """
    if is_compiling():
        return compiled("marginalize_labels", (logits, values))
    try:
        return _C.marginalize_labels(logits, values)
    except REFUSALS as error:
        return retry(marginalize_labels, error, {"logits": logits, "values": values})


def label_linear(
    x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Linear layer on the concatenation of x and onehot(y), with its activation, for every label y at once.

    Computes out[..., y, :] = act(W x + bias + label_weight[:, y]). The product W x is computed once for all labels.

    Args:
        x: [..., I], floating point.
        weight: [H, I].
        label_weight: [H, Y].
        bias: None, [H], or [..., H] whose leading dimensions broadcast against those of x. The last form adds the contribution of
            further inputs, for example [B, 1, H] from one input per row next to x [B, k, I] with k samples per row.
        activation: None, "relu", "leaky_relu" (slope 0.1), "tanh", "softplus", "elu", or "identity", which is the same as None.

    Returns:
        [..., Y, H]. Gradients flow to all four tensors. A second derivative raises NotImplementedError. Under autocast the dtype
        is that of `torch.nn.functional.linear` on CUDA, and float32 on the CPU. Without autocast, 16-bit tensors on the CPU are
        computed in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, the activation is unknown, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: the networks on [x, y] of thesis eqs 4.17–4.20; W [x; onehot(y)] = W_x x + W_y[:, y].
    """
    if is_compiling():
        return compiled("label_linear", (x, weight, label_weight, bias), activation)
    try:
        return _C.label_linear(x, weight, label_weight, bias, activation)
    except REFUSALS as error:
        if not (activation is None or isinstance(activation, str)):
            raise TypeError(f"label_linear: activation must be None or a string; got {type(activation).__name__}") from None
        arguments = {"x": x, "weight": weight, "label_weight": label_weight, "bias": bias}
        return retry(label_linear, error, arguments, activation, optional=("bias",))

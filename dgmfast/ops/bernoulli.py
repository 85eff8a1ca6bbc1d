"""Bernoulli likelihoods, parameterised by logits."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops._call import is_compiling, not_a_tensor


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

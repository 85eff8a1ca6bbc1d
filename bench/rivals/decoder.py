"""The best plain PyTorch of a Bernoulli decoder: its last layer with the likelihood, and all layers with the likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.rivals.ops import (
    bernoulli_log_prob,
    bernoulli_log_prob_forward,
    bernoulli_log_prob_pointwise,
    by_row_blocks,
    rows_of_block,
)


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob(F.linear(h, weight, bias), x)


def linear_bernoulli_log_prob_pointwise(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob_pointwise(F.linear(h, weight, bias), x)


def linear_bernoulli_log_prob_blocks(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Works on blocks of rows whose logits stay in cache; it has no gradients."""
    rows = rows_of_block(x)
    parts = zip(h.split(rows), x.split(rows), strict=True)
    return torch.cat([bernoulli_log_prob_forward(F.linear(part, weight, bias), x_part) for part, x_part in parts])


def mlp_bernoulli_log_prob(h: Tensor, *layers_and_x: Tensor, last: Callable[..., Tensor] = linear_bernoulli_log_prob) -> Tensor:
    """Takes h, W_1, b_1, W_2, b_2, …, x, with tanh between the layers; `last` computes the last layer with the likelihood."""
    *layers, weight, bias, x = layers_and_x
    for i in range(0, len(layers), 2):
        h = torch.tanh(F.linear(h, layers[i], layers[i + 1]))
    return last(h, weight, bias, x)


def mlp_bernoulli_log_prob_blocks(h: Tensor, *layers_and_x: Tensor) -> Tensor:
    """Works on blocks of rows whose activations and logits stay in cache; it has no gradients."""
    *layers, weight, bias, x = layers_and_x
    rows, parts = rows_of_block(x), []
    for part, x_part in zip(h.split(rows), x.split(rows), strict=True):
        for i in range(0, len(layers), 2):
            part = F.linear(part, layers[i], layers[i + 1]).tanh_()
        parts.append(bernoulli_log_prob_forward(F.linear(part, weight, bias), x_part))
    return torch.cat(parts)


class LinearBernoulliLogProb(torch.autograd.Function):
    """Reduces blocks of rows in cache, forward and backward, and keeps the logits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        logits = F.linear(h, weight, bias)
        ctx.save_for_backward(h, weight, x, logits)
        return by_row_blocks(bernoulli_log_prob_forward)(logits, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, x, logits = ctx.saved_tensors
        d_h, d_weight, d_bias = torch.empty_like(h), torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        rows = rows_of_block(x)
        for first in range(0, len(h), rows):
            part = slice(first, first + rows)
            delta = torch.sub(x[part], torch.sigmoid(logits[part])).mul_(grads[0][part].unsqueeze(-1))
            torch.mm(delta, weight, out=d_h[part])
            d_weight.addmm_(delta.t(), h[part])
            d_bias += delta.sum(0)
        return d_h, d_weight, d_bias, None

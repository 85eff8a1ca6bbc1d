"""The best plain-PyTorch form of every op that we could find, as the rivals of the benchmarks.

Every op has up to three kinds of form. `<op>` is differentiable and written for the compiler and for autograd. `<op>_forward`
needs no gradient, works in place and passes over memory as few times as possible. A class has a backward pass written by hand.
Which form is fastest depends on the size and the processor, so the benchmarks time all of them and quote the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LogProb = Callable[[Tensor, Tensor], Tensor]

LOG_2PI = math.log(2.0 * math.pi)
# The size of a temporary that stays in a core's cache: 1 MB of float32. Larger and smaller blocks were slower.
BLOCK_ELEMENTS = 2**18


def rows_of_block(like: Tensor) -> int:
    """Returns how many rows of [B, D] to work on at once: all of them on a GPU, whose caches hold no such block."""
    return max(1, len(like) if like.is_cuda else BLOCK_ELEMENTS // like.shape[-1])


def by_row_blocks(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Applies a formula [B, D]… -> [B] to blocks of rows, so that its temporaries stay in cache; it has no gradients."""

    def blocked(*inputs: Tensor) -> Tensor:
        rows = rows_of_block(inputs[0])
        out = inputs[0].new_empty(inputs[0].shape[0])
        for first in range(0, len(out), rows):
            part = slice(first, first + rows)
            out[part] = formula(*(t[part] for t in inputs))
        return out

    return blocked


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None) -> Tensor:
    if mean_p is None or log_var_p is None:
        return 0.5 * (mean_q.square() + log_var_q.exp() - log_var_q - 1.0).sum(-1)
    ratio = log_var_q - log_var_p
    return 0.5 * (ratio.exp() - ratio + (mean_q - mean_p).square() * torch.exp(-log_var_p) - 1.0).sum(-1)


def gaussian_kl_forward(
    mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None
) -> Tensor:
    if mean_p is None or log_var_p is None:
        terms = log_var_q.exp().addcmul_(mean_q, mean_q).sub_(log_var_q)
    else:
        distance = mean_q - mean_p
        terms = log_var_q.exp().addcmul_(distance, distance).div_(log_var_p.exp()).add_(log_var_p).sub_(log_var_q)
    return terms.sum(-1).sub_(mean_q.shape[-1]).mul_(0.5)


class GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
        variance = log_var_p.exp()
        distance = mean_q - mean_p
        ratio = log_var_q.exp().div_(variance)
        slope = torch.div(distance, variance, out=variance)
        distance *= slope
        ctx.save_for_backward(ratio, distance, slope)
        return torch.add(ratio, distance).add_(log_var_p).sub_(log_var_q).sum(-1).sub_(mean_q.shape[-1]).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        ratio, distance, slope = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        half = 0.5 * grad
        d_mean = slope * grad
        return d_mean, (ratio - 1.0).mul_(half), d_mean.neg(), (ratio + distance).sub_(1.0).mul_(-half)


class GaussianKLToStandard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
        variance = log_var_q.exp()
        ctx.save_for_backward(mean_q, variance)
        return torch.addcmul(variance, mean_q, mean_q).sub_(log_var_q).sum(-1).sub_(mean_q.shape[-1]).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        mean_q, variance = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        return mean_q * grad, (variance - 1.0).mul_(0.5 * grad)


def gaussian_log_prob(x: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    if mean is None or log_var is None:
        return -0.5 * (x.square().sum(-1) + x.shape[-1] * LOG_2PI)
    return -0.5 * (log_var + (x - mean).square() * torch.exp(-log_var)).sum(-1) - 0.5 * x.shape[-1] * LOG_2PI


def gaussian_log_prob_forward(x: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    if mean is None or log_var is None:
        terms = torch.linalg.vector_norm(x, dim=-1).square_()
    else:
        terms = (x - mean).square_().div_(log_var.exp()).add_(log_var).sum(-1)
    return terms.add_(x.shape[-1] * LOG_2PI).mul_(-0.5)


class GaussianLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        distance = x - mean
        slope = torch.exp(-log_var).mul_(distance)
        ctx.save_for_backward(distance, slope)
        return torch.addcmul(log_var, distance, slope).sum(-1).add_(x.shape[-1] * LOG_2PI).mul_(-0.5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        distance, slope = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        d_mean = slope * grad
        return d_mean.neg(), d_mean, (distance * slope).sub_(1.0).mul_(0.5 * grad)


class StandardLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return gaussian_log_prob_forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * -grads[0].unsqueeze(-1)


def gaussian_merge(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
    difference = log_var_p - log_var_q
    return torch.lerp(mean_p, mean_q, torch.sigmoid(difference)), log_var_q + F.logsigmoid(difference)


def gaussian_merge_forward(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
    weight_q = (log_var_p - log_var_q).sigmoid_()
    return torch.lerp(mean_p, mean_q, weight_q), weight_q.log_().add_(log_var_q)


class GaussianMerge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
        weight_q = (log_var_p - log_var_q).sigmoid_()
        distance = mean_p - mean_q
        ctx.save_for_backward(weight_q, distance)
        return torch.lerp(mean_p, mean_q, weight_q), weight_q.log().add_(log_var_q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        weight_q, distance = ctx.saved_tensors
        grad_mean, grad_log_var = grads
        d_mean_q = grad_mean * weight_q
        d_mean_p = grad_mean - d_mean_q
        # d mean / d log_var_q = w (1 − w) (mean_p − mean_q)
        slope = (d_mean_p * weight_q).mul_(distance)
        d_log_var_q = torch.addcmul(slope, grad_log_var, weight_q)
        return d_mean_q, d_log_var_q, d_mean_p, grad_log_var - d_log_var_q


def gaussian_sample(mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maps [B, D] to z [B, k, D] and log q(z) [B, k] with torch's generator, whose noise cannot be drawn again from a key."""
    eps = torch.randn(mean.shape[0], k, mean.shape[1], dtype=mean.dtype, device=mean.device)
    z = torch.addcmul(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1), eps)
    constant = log_var.sum(-1, keepdim=True) + mean.shape[1] * LOG_2PI
    return z, -0.5 * (eps.square().sum(-1) + constant)


def gaussian_sample_forward(mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
    eps = torch.randn(mean.shape[0], k, mean.shape[1], dtype=mean.dtype, device=mean.device)
    constant = log_var.sum(-1, keepdim=True).add_(mean.shape[1] * LOG_2PI)
    log_q = torch.linalg.vector_norm(eps, dim=-1).square_().add_(constant).mul_(-0.5)
    std = log_var.mul(0.5).exp_().unsqueeze(1)
    return torch.addcmul(mean.unsqueeze(1), std, eps, out=eps), log_q


class GaussianSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
        eps = torch.randn(mean.shape[0], k, mean.shape[1], dtype=mean.dtype, device=mean.device)
        std = torch.exp(0.5 * log_var)
        ctx.save_for_backward(eps, std)
        constant = log_var.sum(-1, keepdim=True).add_(mean.shape[1] * LOG_2PI)
        log_q = torch.linalg.vector_norm(eps, dim=-1).square_().add_(constant).mul_(-0.5)
        return torch.addcmul(mean.unsqueeze(1), std.unsqueeze(1), eps), log_q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        eps, std = ctx.saved_tensors
        grad_z, grad_log_q = grads
        d_log_var = (grad_z * eps).sum(1).mul_(std).sub_(grad_log_q.sum(1, keepdim=True)).mul_(0.5)
        return grad_z.sum(1), d_log_var, None


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def bernoulli_log_prob_pointwise(logits: Tensor, x: Tensor) -> Tensor:
    """Computes the form of which torch.compile makes the fastest code: there, log costs less than log1p."""
    return (x * logits - logits.clamp(min=0) - torch.log(1.0 + torch.exp(-logits.abs()))).sum(-1)


def bernoulli_log_prob_forward(logits: Tensor, x: Tensor) -> Tensor:
    return (logits * x).sub_(F.softplus(logits)).sum(-1)


class BernoulliLogProb(torch.autograd.Function):
    """Works on blocks of rows in both passes, so that the gradient is the only large tensor it writes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return by_row_blocks(bernoulli_log_prob_forward)(logits, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, x = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        rows = rows_of_block(logits)
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            block = d_logits[part]
            torch.sigmoid(logits[part], out=block)
            torch.sub(x[part], block, out=block).mul_(grads[0][part].unsqueeze(-1))
        return d_logits, None


def importance_bound(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def importance_bound_log_softmax(log_w: Tensor) -> Tensor:
    """Computes log Σ w = log w₀ − log_softmax(log w)₀: on a CPU, log_softmax is one fused pass, but logsumexp takes four."""
    first = log_w.select(-1, 0)
    return first - F.log_softmax(log_w, -1).select(-1, 0) - math.log(log_w.shape[-1])


class ImportanceBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_w: Tensor) -> Tensor:
        top = log_w.amax(-1, keepdim=True)
        weights = (log_w - top).exp_()
        total = weights.sum(-1)
        ctx.save_for_backward(weights, total)
        return total.log().add_(top.squeeze(-1)).sub_(math.log(log_w.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        weights, total = ctx.saved_tensors
        return weights * (grads[0] / total).unsqueeze(-1)


def importance_state(log_w: Tensor) -> Tensor:
    """Maps [..., K] to [..., 5] as ops.importance_state does, (max, Σ w/max, Σ (w/max)², Σ log w, K), in log_w's precision."""
    top = log_w.amax(-1)
    weights = F.softmax(log_w, -1)
    total = weights.amax(-1).reciprocal_()
    squares = torch.linalg.vector_norm(weights, dim=-1).mul_(total).square_()
    return torch.stack([top, total, squares, log_w.sum(-1), torch.full_like(top, log_w.shape[-1])], -1).double()


def importance_state_double(log_w: Tensor) -> Tensor:
    """Computes importance_state with every sum in float64, as ops.importance_state does."""
    return importance_state(log_w.double())


def marginalize_labels(logits: Tensor, values: Tensor) -> Tensor:
    log_q = F.log_softmax(logits, -1)
    return (log_q.exp() * (values - log_q)).sum(-1)


def marginalize_labels_forward(logits: Tensor, values: Tensor) -> Tensor:
    log_q = F.log_softmax(logits, -1)
    return torch.linalg.vecdot(log_q.exp(), torch.sub(values, log_q, out=log_q))


class MarginalizeLabels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor) -> Tensor:
        log_q = F.log_softmax(logits, -1)
        q = log_q.exp()
        rest = torch.sub(values, log_q, out=log_q)
        bound = torch.linalg.vecdot(q, rest)
        ctx.save_for_backward(q, rest, bound)
        return bound

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, rest, bound = ctx.saved_tensors
        d_values = q * grads[0].unsqueeze(-1)
        return (rest - bound.unsqueeze(-1)).mul_(d_values), d_values


def label_linear(x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor) -> Tensor:
    """Applies the layer and tanh for every label, [B, I] -> [B, Y, H], with one product of x for all labels."""
    return torch.tanh(F.linear(x, weight, bias).unsqueeze(1) + label_weight.t())


def label_linear_forward(x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor) -> Tensor:
    return (F.linear(x, weight, bias).unsqueeze(1) + label_weight.t()).tanh_()


class LabelLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor) -> Tensor:
        out = label_linear_forward(x, weight, label_weight, bias)
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, weight, out = ctx.saved_tensors
        delta = torch.ops.aten.tanh_backward(grads[0], out)
        shared = delta.sum(1)
        return shared @ weight, shared.t() @ x, delta.sum(0).t(), shared.sum(0)


def label_linear_repeated(x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor) -> Tensor:
    """Computes label_linear as most implementations do: it repeats the batch for every label and joins the one-hot code."""
    labels = label_weight.shape[1]
    onehot = torch.eye(labels, dtype=x.dtype, device=x.device).repeat(len(x), 1)
    xy = torch.cat([x.repeat_interleave(labels, 0), onehot], 1)
    return torch.tanh(F.linear(xy, torch.cat([weight, label_weight], 1), bias)).view(len(x), labels, -1)


def masked_conv2d(weight: Tensor, bias: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    """Convolves with a masked weight, [N, I, H, W] -> [N, O, H, W]; taps [O, I, kh, kw] holds zeros and ones."""
    return F.conv2d(x, weight * taps, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def masked_conv2d_cropped(weight: Tensor, bias: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    """Leaves out the kernel rows below the pixel, which are all zero, and cuts the surplus rows off the output."""
    rows = weight.shape[2] // 2 + 1
    cropped = weight[:, :, :rows] * taps[:, :, :rows]
    return F.conv2d(x, cropped, bias, padding=(rows - 1, weight.shape[3] // 2))[:, :, : x.shape[2]]


def masked_conv2d_padded(weight: Tensor, bias: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    """Leaves out the same kernel rows, but pads only above, so that no surplus row is computed."""
    rows, columns = weight.shape[2] // 2 + 1, weight.shape[3] // 2
    cropped = weight[:, :, :rows] * taps[:, :, :rows]
    return F.conv2d(F.pad(x, (0, 0, rows - 1, 0)), cropped, bias, padding=(0, columns))


def in_channels_last(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps convolution(weight, bias, x, ...) so that x is converted to channels-last, which the library may prefer."""
    last = torch.channels_last
    return lambda weight, bias, x, **kwargs: convolution(weight, bias, x.contiguous(memory_format=last), **kwargs)

"""Every op in plain PyTorch, written line by line from its formula. In float64 it is the truth that the tests compare with.

The functions have the names and arguments of `dgmfast.ops`. They are written for clarity, not for speed; the benchmarks compare
with the code in `bench/rivals` instead. Equation numbers refer to the thesis (L. Maaløe, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast.seeds import seed_or_drawn

LOG_2PI = math.log(2.0 * math.pi)


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None) -> Tensor:
    """KL(N(mean_q, e^log_var_q) ‖ N(mean_p, e^log_var_p)) summed over the last dimension; p defaults to N(0, I)."""
    mean_p = torch.zeros_like(mean_q) if mean_p is None else mean_p
    log_var_p = torch.zeros_like(log_var_q) if log_var_p is None else log_var_p
    ratio = torch.exp(log_var_q - log_var_p)
    distance = (mean_q - mean_p).square() * torch.exp(-log_var_p)
    return 0.5 * (log_var_p - log_var_q + ratio + distance - 1.0).sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    """log N(x; mean, e^log_var) summed over the last dimension; mean and log_var default to zero."""
    mean = torch.zeros_like(x) if mean is None else mean
    log_var = torch.zeros_like(x) if log_var is None else log_var
    return -0.5 * (LOG_2PI + log_var + (x - mean).square() * torch.exp(-log_var)).sum(-1)


def gaussian_merge(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised product of two Gaussians, with precisions as weights (eq. 5.4 with σ² = 1/(σ_q⁻² + σ_p⁻²)): (mean, log_var)."""
    mean_q, log_var_q, mean_p, log_var_p = torch.broadcast_tensors(mean_q, log_var_q, mean_p, log_var_p)
    log_var = -torch.logaddexp(-log_var_q, -log_var_p)
    weight_q, weight_p = torch.sigmoid(log_var_p - log_var_q), torch.sigmoid(log_var_q - log_var_p)
    return mean_q * weight_q + mean_p * weight_p, log_var


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Σ_d x_d l_d − softplus(l_d), the log-probability of x under Bernoulli(sigmoid(logits))."""
    softplus = torch.logaddexp(logits, torch.zeros_like(logits))
    return (x.to(logits.dtype) * logits - softplus).sum(-1)


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """log p(x) under Bernoulli(sigmoid(W h + b)): h [B, H] or [B, K, H], x [B, D]. Logits of 16 bits are summed in float32."""
    logits = F.linear(h, weight, bias)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return bernoulli_log_prob(logits, x if h.dim() == 2 else x.unsqueeze(1))


def importance_bound(log_w: Tensor, dim: int = -1) -> Tensor:
    """log (1/K) Σ_k w_k (eq. 3.31) over dimension `dim` of size K. It is −∞ with gradient 0 if all weights are 0."""
    none = (log_w == -math.inf).all(dim, keepdim=True)
    bound = torch.logsumexp(log_w.masked_fill(none, 0.0), dim) - math.log(log_w.shape[dim])
    return bound.masked_fill(none.squeeze(dim), -math.inf)


def importance_state(log_w: Tensor, state: Tensor | None = None) -> Tensor:
    """[..., K] -> [..., 5] float64: (max, Σ e^{l−max}, Σ e^{2(l−max)}, Σ l, K) over the weights and those already in `state`."""
    log_w = log_w.double()
    if state is None:
        state = log_w.new_tensor([-math.inf, 0.0, 0.0, 0.0, 0.0]).expand(*log_w.shape[:-1], 5)
    top = torch.cat([state[..., :1], log_w], -1).amax(-1, keepdim=True)
    # Weights relative to the largest one; each weight of e^∞ counts as 1.
    weight = torch.where(log_w == -math.inf, 0.0, torch.where(log_w == top, 1.0, torch.exp(log_w - top)))
    scale = torch.where(state[..., 0] == top[..., 0], 1.0, torch.exp(state[..., 0] - top[..., 0]))
    sums = [scale * state[..., 1] + weight.sum(-1), scale**2 * state[..., 2] + weight.square().sum(-1)]
    return torch.stack([top[..., 0], *sums, state[..., 3] + log_w.sum(-1), state[..., 4] + log_w.shape[-1]], -1)


def marginalize_labels(logits: Tensor, values: Tensor) -> Tensor:
    """Σ_y q_y (values_y − log q_y) with q = softmax(logits) (eq. 4.20). A label with q_y = 0 adds only q_y values_y."""
    log_q = torch.log_softmax(logits, -1)
    q = log_q.exp()
    return (q * (values - torch.where(q == 0.0, 0.0, log_q))).sum(-1)


ACTIVATIONS = {
    None: lambda a: a,
    "identity": lambda a: a,
    "relu": torch.relu,
    "leaky_relu": lambda a: F.leaky_relu(a, 0.1),
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
}


def label_linear(
    x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """act(W x + bias + label_weight[:, y]) for every label y: [..., I] -> [..., Y, H]. It is a linear layer on [x, onehot(y)]."""
    shared = F.linear(x, weight) if bias is None else F.linear(x, weight) + bias
    return ACTIVATIONS[activation](shared.unsqueeze(-2) + label_weight.t())


def mlp_bernoulli_log_prob(
    h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, activation: str | None = None
) -> Tensor:
    """Apply act(W_i h + b_i) for every layer except the last, then `linear_bernoulli_log_prob` with the last layer."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = ACTIVATIONS[activation](F.linear(h, weight, bias))
    return linear_bernoulli_log_prob(h, weights[-1], biases[-1], x)


def causal_mask(
    mask: str, out_channels: int, in_channels: int, kernel_size: tuple[int, int], colors: int = 1, unmasked_inputs: int = 0
) -> Tensor:
    """The mask of a causal convolution, [O, I, kh, kw] of zeros and ones: ones at the taps that precede a pixel in raster order.

    The masked channels form `colors` equal, consecutive groups. At the pixel itself a group sees the groups before it; with mask
    "B" it also sees itself. The first unmasked_inputs input channels belong to no group and are seen at every tap.
    """
    rows, columns = kernel_size
    before = torch.zeros(rows, columns)
    before[: rows // 2] = 1.0
    before[rows // 2, : columns // 2] = 1.0
    group_out = torch.arange(out_channels) * colors // max(out_channels, 1)
    group_in = torch.arange(in_channels - unmasked_inputs) * colors // max(in_channels - unmasked_inputs, 1)
    later = group_out.unsqueeze(1) - group_in
    taps = before.expand(out_channels, in_channels - unmasked_inputs, rows, columns).clone()
    taps[:, :, rows // 2, columns // 2] = (later >= (0 if mask == "B" else 1)).to(taps.dtype)
    return torch.cat([torch.ones(out_channels, unmasked_inputs, rows, columns), taps], 1)


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: str = "B", colors: int = 1, unmasked_inputs: int = 0
) -> Tensor:
    """conv2d(x, weight * causal_mask, bias), zero-padded to the same size: [N, I, H, W] -> [N, O, H, W]."""
    size = (weight.shape[2], weight.shape[3])
    taps = causal_mask(mask, weight.shape[0], weight.shape[1], size, colors, unmasked_inputs).to(weight)
    if x.numel() == 0 or weight.numel() == 0:  # torch's convolution rejects empty tensors
        nothing = x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:]) + 0.0 * (x.sum() + weight.sum())
        return nothing if bias is None else nothing + bias.view(-1, 1, 1)
    return F.conv2d(x, weight * taps, bias, padding=(size[0] // 2, size[1] // 2))


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> list[Tensor]:
    """Four random 32-bit words from Philox-4x32-10 (Salmon et al. 2011), held in int64 tensors like the counter's words."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        # The products exceed 63 bits, so _multiply_32 splits the counter word into two 16-bit halves.
        hi0, lo0 = _multiply_32(c0, 0xD2511F53)
        hi1, lo1 = _multiply_32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [c0, c1, c2, c3]


def _multiply_32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of the 64-bit product a · b."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def standard_normal(
    rows: int, samples: int, dim: int, seed: int, stream: int = 0, first_row: int = 0, first_sample: int = 0
) -> Tensor:
    """[rows, samples, dim] float64 standard normals from Philox, with key seed and counter (dimension, sample, row, stream).

    Dimensions are drawn in groups of 64. Lane j of group g has the counter word 16·g + j, and yields the dimensions
    64·g + j + {0, 16, 32, 48} by two Box–Muller pairs.
    """
    groups = -(-dim // 64)
    row = torch.arange(first_row, first_row + rows).view(-1, 1, 1)
    sample = torch.arange(first_sample, first_sample + samples).view(1, -1, 1)
    lane = torch.arange(groups * 16).view(1, 1, -1)
    zero = row * 0 + sample * 0 + lane * 0
    w0, w1, w2, w3 = philox_4x32((lane + zero, sample + zero, row + zero, stream + zero), seed)
    draws = [*_box_muller(w0, w1), *_box_muller(w2, w3)]
    # [rows, samples, groups, 4, 16]: flattened, the last three dimensions are the dimension index in order.
    return torch.stack([d.view(rows, samples, groups, 16) for d in draws], 3).reshape(rows, samples, groups * 64)[..., :dim]


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from two 32-bit words."""
    # The top bit tells in which half of (0, 1) u lies. The other 31 bits give its distance v from that end.
    v = ((radius_word & 0x7FFFFFFF).double() + 0.5) * 2.0**-32
    log_u = torch.where(radius_word >= 2**31, torch.log(v), torch.log1p(-v))
    radius = torch.sqrt(-2.0 * log_u)
    angle = angle_word.double() * (2.0 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def gaussian_sample(
    mean: Tensor,
    log_var: Tensor,
    k: int = 1,
    *,
    seed: int | Tensor | None = None,
    stream: int = 0,
    first_row: int = 0,
    first_sample: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """z = mean + e^{log_var/2} ε and log q(z) = Σ_d −½(log 2π + log_var + ε²): [B, D] -> [B, k, D]; [B, K, D] is sampled once."""
    seed = seed_or_drawn("gaussian_sample", seed, generator, mean.device)
    mean, log_var = torch.broadcast_tensors(mean, log_var)
    per_row = mean.dim() == 2
    samples = k if per_row else mean.shape[1]
    eps = standard_normal(mean.shape[0], samples, mean.shape[-1], int(seed), stream, first_row, first_sample)
    eps = eps.to(device=mean.device, dtype=mean.dtype)
    if per_row:
        mean, log_var = mean.unsqueeze(1), log_var.unsqueeze(1)
    z = mean + torch.exp(0.5 * log_var) * eps
    return z, -0.5 * (LOG_2PI + log_var + eps.square()).sum(-1)

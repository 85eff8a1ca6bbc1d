"""Diagonal Gaussians, parameterised by mean and log-variance: divergence, log-density, sampling, product."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor
from dgmfast.seeds import seed_or_drawn


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None) -> Tensor:
    """KL divergence of two diagonal Gaussians, KL(N(mean_q, e^log_var_q) ‖ N(mean_p, e^log_var_p)), in nats.

    ½ Σ_d [log_var_p − log_var_q + e^{log_var_q − log_var_p} + (mean_q − mean_p)² e^{−log_var_p} − 1]; p defaults to N(0, I).

    Args:
        mean_q, log_var_q, mean_p, log_var_p: [..., D], one floating dtype and device; leading dimensions broadcast.

    Returns:
        [...], the divergence summed over D. Gradients flow to all four; a second derivative raises.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

    Source: the analytic KL of thesis eq. 3.11.
    """
    if is_compiling():
        return torch.ops.dgmfast.gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    try:
        return _C.gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    except TypeError as error:
        given = {name: t for name, t in (("mean_p", mean_p), ("log_var_p", log_var_p)) if t is not None}
        raise not_a_tensor("gaussian_kl", error, mean_q=mean_q, log_var_q=log_var_q, **given) from None


def gaussian_log_prob(x: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    """Log-density of a diagonal Gaussian, log N(x; mean, e^log_var), in nats.

    −½ Σ_d [log 2π + log_var + (x − mean)² e^{−log_var}]; mean and log_var default to 0.

    Args:
        x, mean, log_var: [..., D], one floating dtype and device; leading dimensions broadcast.

    Returns:
        [...], summed over D. Gradients flow to all three; a second derivative raises.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

    Source: log p(z) and log q(z|x) of thesis eqs 3.29 and 3.31.
    """
    if is_compiling():
        return torch.ops.dgmfast.gaussian_log_prob(x, mean, log_var)
    try:
        return _C.gaussian_log_prob(x, mean, log_var)
    except TypeError as error:
        given = {name: t for name, t in (("mean", mean), ("log_var", log_var)) if t is not None}
        raise not_a_tensor("gaussian_log_prob", error, x=x, **given) from None


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
    """Reparameterised draws z = mean + e^{log_var/2} ε and their log-density log q(z), in nats.

    ε of row i, sample j, dimension d is the Philox draw keyed by seed at counter (d, first_sample + j, first_row + i, stream):
    bit-equal for any chunking and thread count, and two streams never overlap. float32 and float64 draw the same ε to rounding.

    Args:
        mean, log_var: [B, D] for k draws of each row, or [B, K, D] for one draw of each (k = 1); they broadcast.
        k: draws per row. seed: an int64, or a 0-dimensional int64 tensor on mean's device (a captured CUDA graph then draws
            afresh at each replay). Without a seed, each call draws one from `generator`, by default torch's own, which
            torch.manual_seed sets. stream, first_row, first_sample: 32-bit coordinates; under one seed, give every latent its
            own stream.

    Returns:
        z [B, k, D] (or [B, K, D]) and log_q [B, k] (or [B, K]). Gradients flow to mean and log_var through both outputs; the
        backward pass draws the noise again instead of storing it; a second derivative raises.

    Raises:
        ValueError: k below 1, shapes that do not fit, a coordinate outside [0, 2³²), tensors on two devices, or both a seed and
            a generator.
        TypeError: a dtype that is not supported, mixed dtypes, or a seed that is neither an int nor an int64 tensor.

    Source: thesis eqs 3.20–3.21 (reparameterisation); Salmon et al. 2011 (Philox-4x32-10).
    """
    seed = seed_or_drawn("gaussian_sample", seed, generator, getattr(mean, "device", None))
    seed_tensor, seed_int = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    if is_compiling():
        return torch.ops.dgmfast.gaussian_sample(mean, log_var, k, seed_int, seed_tensor, stream, first_row, first_sample)
    try:
        return _C.gaussian_sample(mean, log_var, k, seed_int, seed_tensor, stream, first_row, first_sample)
    except TypeError as error:
        for name, value in {
            "k": k,
            "seed": seed_int,
            "stream": stream,
            "first_row": first_row,
            "first_sample": first_sample,
        }.items():
            if not isinstance(value, int) or not -(2**63) <= value < 2**63:
                message = (
                    f"gaussian_sample: {name} must be an int of 64 bits{' or an int64 tensor' * (name == 'seed')}; got {value!r}"
                )
                raise TypeError(message) from None
        raise not_a_tensor("gaussian_sample", error, mean=mean, log_var=log_var) from None


def gaussian_merge(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
    """Precision-weighted product of two diagonal Gaussians: its mean and log-variance.

    σ² = 1/(σ_q⁻² + σ_p⁻²), mean = σ² (mean_q σ_q⁻² + mean_p σ_p⁻²).

    Args:
        mean_q, log_var_q, mean_p, log_var_p: [..., D], one floating dtype and device; leading dimensions broadcast.

    Returns:
        (mean, log_var), each [..., D]. Gradients flow to all four; a second derivative raises.

    Raises:
        ValueError: shapes do not fit, or tensors on two devices. TypeError: a dtype that is not supported, or mixed dtypes.

    Source: thesis eq. 5.4, its σ read as a variance; App. B eqs 17–19.
    """
    if is_compiling():
        return torch.ops.dgmfast.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p)
    try:
        return _C.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p)
    except TypeError as error:
        arguments = {"mean_q": mean_q, "log_var_q": log_var_q, "mean_p": mean_p, "log_var_p": log_var_p}
        raise not_a_tensor("gaussian_merge", error, **arguments) from None

"""Diagonal Gaussians, parameterised by mean and log-variance: KL divergence, log-density, sampling and product."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import _C
from dgmfast.ops.call import is_compiling, not_a_tensor
from dgmfast.seeds import seed_or_drawn


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None) -> Tensor:
    """KL divergence between two diagonal Gaussians, KL(N(mean_q, e^log_var_q) ‖ N(mean_p, e^log_var_p)), in nats.

    Computes ½ Σ_d [log_var_p − log_var_q + e^{log_var_q − log_var_p} + (mean_q − mean_p)² e^{−log_var_p} − 1].

    Args:
        mean_q: [..., D], floating point.
        log_var_q: [..., D].
        mean_p: [..., D], or None for 0.
        log_var_p: [..., D], or None for 0. All tensors share one dtype and device, and their leading dimensions broadcast.

    Returns:
        [...], summed over D. Gradients flow to all four arguments. A second derivative raises NotImplementedError.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

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

    Computes −½ Σ_d [log 2π + log_var + (x − mean)² e^{−log_var}].

    Args:
        x: [..., D], floating point.
        mean: [..., D], or None for 0.
        log_var: [..., D], or None for 0. All tensors share one dtype and device, and their leading dimensions broadcast.

    Returns:
        [...], summed over D. Gradients flow to all three arguments. A second derivative raises NotImplementedError.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

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
    """Draw reparameterised samples z = mean + e^{log_var/2} ε and compute their log-density log q(z), in nats.

    The noise ε of row i, sample j and dimension d is a Philox number with the seed as key and the counter
    (d, first_sample + j, first_row + i, stream). It is therefore bit-equal for any chunking and any number of threads, and two
    streams never overlap. float32 and float64 draw the same ε up to rounding.

    Args:
        mean: [B, D] for k samples of each row, or [B, K, D] for one sample of each entry (then k = 1).
        log_var: The same as mean; the two broadcast.
        k: Number of samples per row.
        seed: An int of 64 bits, or a 0-dimensional int64 tensor on the device of mean. With a tensor, a captured CUDA graph draws
            new noise at each replay. Without a seed, each call draws one from `generator`.
        stream: 32-bit coordinate. Under one seed, give every latent its own stream.
        first_row: 32-bit coordinate of the first row.
        first_sample: 32-bit coordinate of the first sample.
        generator: Source of the seed; by default torch's own generator, which torch.manual_seed sets.

    Returns:
        z [B, k, D] (or [B, K, D]) and log_q [B, k] (or [B, K]). Gradients flow to mean and log_var through both outputs. The
        backward pass draws the noise again instead of storing it. A second derivative raises NotImplementedError.

    Raises:
        ValueError: k is below 1, the shapes do not fit, a coordinate is outside [0, 2³²), the tensors are on different devices,
            or both a seed and a generator are given.
        TypeError: A dtype is not supported, the dtypes are mixed, or the seed is neither an int nor an int64 tensor.

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
    """Normalised product of two diagonal Gaussians (precision-weighted): its mean and log-variance.

    The variance is σ² = 1/(σ_q⁻² + σ_p⁻²), and the mean is σ² (mean_q σ_q⁻² + mean_p σ_p⁻²).

    Args:
        mean_q: [..., D], floating point.
        log_var_q: [..., D].
        mean_p: [..., D].
        log_var_p: [..., D]. All tensors share one dtype and device, and their leading dimensions broadcast.

    Returns:
        (mean, log_var), each [..., D]. Gradients flow to all four arguments. A second derivative raises NotImplementedError.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: thesis eq. 5.4, where σ is read as a variance; App. B eqs 17–19.
    """
    if is_compiling():
        return torch.ops.dgmfast.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p)
    try:
        return _C.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p)
    except TypeError as error:
        arguments = {"mean_q": mean_q, "log_var_q": log_var_q, "mean_p": mean_p, "log_var_p": log_var_p}
        raise not_a_tensor("gaussian_merge", error, **arguments) from None

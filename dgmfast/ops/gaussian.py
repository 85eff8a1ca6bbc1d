"""Diagonal Gaussians, parameterised by mean and log-variance: KL divergence, log-density, sampling and product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from dgmfast import _C
from dgmfast.ops.call import REFUSALS, compiled, is_compiling, retry
from dgmfast.seeds import seed_or_drawn


def gaussian_kl(
    mean_q: Tensor | float,
    log_var_q: Tensor | float,
    mean_p: Tensor | float | None = None,
    log_var_p: Tensor | float | None = None,
) -> Tensor:
    """KL divergence between two diagonal Gaussians, KL(N(mean_q, e^log_var_q) ‖ N(mean_p, e^log_var_p)), in nats.

    Computes ½ Σ_d [log_var_p − log_var_q + e^{log_var_q − log_var_p} + (mean_q − mean_p)² e^{−log_var_p} − 1].

    Args:
        mean_q: [..., D], floating point.
        log_var_q: [..., D].
        mean_p: [..., D], or None for 0.
        log_var_p: [..., D], or None for 0. All tensors share one dtype and device, and their leading dimensions broadcast. A
            number, a 0-dimensional tensor or a last dimension of size 1 broadcasts over D; one argument must be a tensor.

    Returns:
        [...], summed over D. Gradients flow to all four arguments. A second derivative raises NotImplementedError. 16-bit
        tensors on the CPU are computed in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: the analytic KL of thesis eq. 3.11.
    """
    if is_compiling():
        return compiled("gaussian_kl", (mean_q, log_var_q, mean_p, log_var_p), broadcast=True)
    try:
        return _C.gaussian_kl(mean_q, log_var_q, mean_p, log_var_p)
    except REFUSALS as error:
        arguments = {"mean_q": mean_q, "log_var_q": log_var_q, "mean_p": mean_p, "log_var_p": log_var_p}
        return retry(gaussian_kl, error, arguments, optional=("mean_p", "log_var_p"), broadcast=True)


def gaussian_log_prob(x: Tensor | float, mean: Tensor | float | None = None, log_var: Tensor | float | None = None) -> Tensor:
    """Log-density of a diagonal Gaussian, log N(x; mean, e^log_var), in nats.

    Computes −½ Σ_d [log 2π + log_var + (x − mean)² e^{−log_var}].

    Args:
        x: [..., D], floating point.
        mean: [..., D], or None for 0.
        log_var: [..., D], or None for 0. All tensors share one dtype and device, and their leading dimensions broadcast. A
            number, a 0-dimensional tensor or a last dimension of size 1 broadcasts over D; one argument must be a tensor.

    Returns:
        [...], summed over D. Gradients flow to all three arguments. A second derivative raises NotImplementedError. 16-bit
        tensors on the CPU are computed in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: log p(z) and log q(z|x) of thesis eqs 3.29 and 3.31.
    """
    if is_compiling():
        return compiled("gaussian_log_prob", (x, mean, log_var), broadcast=True)
    try:
        return _C.gaussian_log_prob(x, mean, log_var)
    except REFUSALS as error:
        arguments = {"x": x, "mean": mean, "log_var": log_var}
        return retry(gaussian_log_prob, error, arguments, optional=("mean", "log_var"), broadcast=True)


def gaussian_sample(
    mean: Tensor | float,
    log_var: Tensor | float,
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
        log_var: The same as mean; the two broadcast. A number, a 0-dimensional tensor or a last dimension of size 1 broadcasts
            over D; one of the two must be a tensor.
        k: Number of samples per row.
        seed: An int of 64 bits, or a 0-dimensional int64 tensor on the device of mean. With a tensor, a captured CUDA graph draws
            new noise at each replay. Without a seed, each call draws one from `generator`.
        stream: 32-bit coordinate. Under one seed, give every latent its own stream.
        first_row: 32-bit coordinate of the first row.
        first_sample: 32-bit coordinate of the first sample.
        generator: A torch.Generator, from which the seed is drawn; by default torch's own generator, which torch.manual_seed
            sets. Each call advances it, and the same state gives the same samples. It may be on any device.

    Returns:
        z [B, k, D] (or [B, K, D]) and log_q [B, k] (or [B, K]). Gradients flow to mean and log_var through both outputs. The
        backward pass draws the noise again instead of storing it. A second derivative raises NotImplementedError. 16-bit
        tensors on the CPU are computed in float32, and the results are rounded.

    Raises:
        ValueError: k is below 1, the shapes do not fit, a coordinate is outside [0, 2³²), the tensors are on different devices,
            or both a seed and a generator are given.
        TypeError: A dtype is not supported, the dtypes are mixed, the seed is neither an int nor an int64 tensor, or the
            generator is not a torch.Generator.

    Source: thesis eqs 3.20–3.21 (reparameterisation); Salmon et al. 2011 (Philox-4x32-10).
    """
    device = getattr(mean, "device", None)
    if not isinstance(device, torch.device):  # a number, or traced by torch.fx, whose graph draws a seed at each call
        if isinstance(mean, Proxy) or isinstance(log_var, Proxy):
            key = {"seed": seed, "stream": stream, "first_row": first_row, "first_sample": first_sample, "generator": generator}
            return handle_torch_function(gaussian_sample, (mean, log_var), mean, log_var, k, **key)
        device = getattr(log_var, "device", None)
    seed = seed_or_drawn("gaussian_sample", seed, generator, device)
    seed_tensor, seed_int = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    if is_compiling():
        rest = (k, seed_int, seed_tensor, stream, first_row, first_sample)
        return compiled("gaussian_sample", (mean, log_var), *rest, broadcast=True)
    try:
        return _C.gaussian_sample(mean, log_var, k, seed_int, seed_tensor, stream, first_row, first_sample)
    except REFUSALS as error:
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
        rest = (k, seed_int, seed_tensor, stream, first_row, first_sample)
        return retry(gaussian_sample, error, {"mean": mean, "log_var": log_var}, *rest, broadcast=True)


def gaussian_merge(
    mean_q: Tensor | float, log_var_q: Tensor | float, mean_p: Tensor | float, log_var_p: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Normalised product of two diagonal Gaussians (precision-weighted): its mean and log-variance.

    The variance is σ² = 1/(σ_q⁻² + σ_p⁻²), and the mean is σ² (mean_q σ_q⁻² + mean_p σ_p⁻²).

    Args:
        mean_q: [..., D], floating point.
        log_var_q: [..., D].
        mean_p: [..., D].
        log_var_p: [..., D]. All tensors share one dtype and device, and their leading dimensions broadcast. A number, a
            0-dimensional tensor or a last dimension of size 1 broadcasts over D; one argument must be a tensor.

    Returns:
        (mean, log_var), each [..., D]. Gradients flow to all four arguments. A second derivative raises NotImplementedError.
        16-bit tensors on the CPU are computed in float32, and the results are rounded.

    Raises:
        ValueError: The shapes do not fit, or the tensors are on different devices.
        TypeError: A dtype is not supported, or the dtypes are mixed.

    Source: thesis eq. 5.4, where σ is read as a variance; App. B eqs 17–19.
    """
    if is_compiling():
        return compiled("gaussian_merge", (mean_q, log_var_q, mean_p, log_var_p), broadcast=True)
    try:
        return _C.gaussian_merge(mean_q, log_var_q, mean_p, log_var_p)
    except REFUSALS as error:
        arguments = {"mean_q": mean_q, "log_var_q": log_var_q, "mean_p": mean_p, "log_var_p": log_var_p}
        return retry(gaussian_merge, error, arguments, broadcast=True)


def from_normal(normal: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of a torch.distributions.Normal, as the Gaussian ops take them.

    The mean is loc, and the log-variance is 2 log(scale).

    Args:
        normal: A Normal of batch shape [..., D], or an Independent of one. The ops sum over the last dimension, as
            Independent(normal, 1) does.

    Returns:
        (mean, log_var), each [..., D], of the dtype of the distribution. Gradients flow to loc and scale.

    Raises:
        TypeError: The distribution is not a Normal.
    """
    base = normal
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise TypeError(f"from_normal: normal must be a Normal or an Independent of one; got {type(base).__name__}")
    return base.loc, 2.0 * base.scale.log()


def to_normal(mean: Tensor, log_var: Tensor) -> Normal:
    """The torch.distributions.Normal of a mean and a log-variance, with scale = e^{log_var/2}.

    Args:
        mean: [..., D], floating point.
        log_var: [..., D], which broadcasts against mean.

    Returns:
        A Normal of batch shape [..., D]. Its log_prob is that of each element; Independent(to_normal(mean, log_var), 1) sums
        over the last dimension, as the ops do. Gradients flow to both arguments.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A mean is NaN, or a scale is NaN or underflows to 0 (torch checks this).
    """
    for name, value in {"mean": mean, "log_var": log_var}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"to_normal: {name} must be a tensor; got {type(value).__name__}")
    return Normal(mean, torch.exp(0.5 * log_var))

"""log p(x) of a VAE as a careful user of PyTorch writes it, from rivals/ops.py: the rival of `evaluate.log_likelihood`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from bench.rivals.ops import BLOCK_ELEMENTS, LogProb, bernoulli_log_prob_forward, gaussian_log_prob_forward
from dgmfast.models import VAE
from dgmfast.nn import BernoulliOutput, GaussianOutput

Weights = Callable[[VAE, Tensor, Tensor, Tensor, Tensor], Tensor]


def vae_log_weights(
    model: VAE, x: Tensor, mean: Tensor, log_var: Tensor, eps: Tensor, log_px: LogProb = bernoulli_log_prob_forward
) -> Tensor:
    """Returns log p(x, z) − log q(z|x), [B, k], at z = mean + e^{log_var/2} eps with eps [B, k, D].

    The noise of upper layers is drawn here. The terms −½ D log 2π of q and p cancel layer by layer.
    """
    std = torch.exp(0.5 * log_var).unsqueeze(1)
    below = torch.addcmul(mean.unsqueeze(1), std, eps)
    z1 = below
    doubled = torch.linalg.vector_norm(eps, dim=-1).square() + log_var.sum(-1, keepdim=True)
    for q, p in zip(model.q[1:], model.p, strict=True):
        mean_q, log_var_q = q(below)
        noise = torch.randn_like(mean_q)
        z = torch.addcmul(mean_q, torch.exp(0.5 * log_var_q), noise)
        mean_p, log_var_p = p(z)
        doubled += torch.linalg.vector_norm(noise, dim=-1).square() + log_var_q.sum(-1)
        doubled -= ((below - mean_p).square().div_(log_var_p.exp()).add_(log_var_p)).sum(-1)
        below = z
    doubled -= torch.linalg.vector_norm(below, dim=-1).square()
    h = model.decoder(z1)
    if isinstance(model.output, BernoulliOutput):
        return log_px(model.output.logits(h), x.unsqueeze(1)).add_(doubled, alpha=0.5)
    assert isinstance(model.output, GaussianOutput)
    return gaussian_log_prob_forward(x.unsqueeze(1), *model.output.gaussian(h)).add_(doubled, alpha=0.5)


def default_chunk(model: VAE, device: torch.device) -> int:
    """Returns how many (image, sample) rows are decoded at a time: so many that the output stays in cache, or fills a GPU."""
    elements = BLOCK_ELEMENTS if device.type == "cpu" else 2**26
    return max(1, elements // model.x_dim)


@torch.no_grad()
def eager_log_likelihood(
    model: VAE, x: Tensor, k: int = 5000, seed: int = 0, chunk: int | None = None, log_weights: Weights = vae_log_weights
) -> Tensor:
    """Returns L_K of every row of x [N, D], [N] in nats, as a careful user of PyTorch writes it.

    It encodes once, runs `chunk` (image, sample) rows at a time through the decoder and adds their weights by log-sum-exp.
    """
    model.eval()
    generator = torch.Generator(x.device).manual_seed(seed)
    chunk = default_chunk(model, x.device) if chunk is None else chunk
    samples, images = min(k, chunk), max(1, chunk // k)
    encoding = model.encode(x)
    bounds = []
    for first in range(0, len(x), images):
        part = slice(first, first + images)
        mean, log_var = encoding["mean"][part], encoding["log_var"][part]
        total = None
        for done in range(0, k, samples):
            size = (len(mean), min(samples, k - done), mean.shape[1])
            eps = torch.randn(size, generator=generator, dtype=mean.dtype, device=mean.device)
            block = torch.logsumexp(log_weights(model, x[part], mean, log_var, eps), 1)
            total = block if total is None else torch.logaddexp(total, block)
        bounds.append(total)
    return torch.cat([t for t in bounds if t is not None]) - math.log(k) if bounds else x.new_zeros(0)


def threaded_log_likelihood(model: VAE, x: Tensor, k: int = 5000, seed: int = 0, chunk: int | None = None) -> Tensor:
    """Computes eager_log_likelihood with the rows shared among Python threads, one per torch thread, each computing alone."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = [
                pool.submit(eager_log_likelihood, model, part, k, seed + i, chunk) for i, part in enumerate(x.chunk(threads))
            ]
            return torch.cat([part.result() for part in parts])
    finally:
        torch.set_num_threads(threads)

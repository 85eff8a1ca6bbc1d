"""The ops as users of torch.distributions write them, with argument validation off, as its fastest users have it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence


def _normal(mean: Tensor, log_var: Tensor) -> Normal:
    return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)


def _standard(like: Tensor) -> Normal:
    return Normal(torch.zeros_like(like), torch.ones_like(like), validate_args=False)


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | None = None, log_var_p: Tensor | None = None) -> Tensor:
    prior = _standard(mean_q) if mean_p is None or log_var_p is None else _normal(mean_p, log_var_p)
    return kl_divergence(_normal(mean_q, log_var_q), prior).sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor | None = None, log_var: Tensor | None = None) -> Tensor:
    density = _standard(x) if mean is None or log_var is None else _normal(mean, log_var)
    return density.log_prob(x).sum(-1)


def gaussian_sample(mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
    posterior = _normal(mean.unsqueeze(1), log_var.unsqueeze(1)).expand(torch.Size([mean.shape[0], k, mean.shape[1]]))
    z = posterior.rsample()
    return z, posterior.log_prob(z).sum(-1)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)

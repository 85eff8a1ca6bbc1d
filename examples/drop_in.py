"""Compares the loss of a VAE in plain PyTorch with the README's loss on dgmfast's ops, and the time of a step of each.

python examples/drop_in.py
"""

import time

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from dgmfast import ops

encoder, decoder = torch.nn.Linear(784, 2 * 50), torch.nn.Linear(50, 784)
x = torch.rand(100, 784).round()  # binary images [B, 784]


def plain_loss(x):
    mean, log_var = encoder(x).chunk(2, -1)  # [B, 50] each
    q = Normal(mean, torch.exp(0.5 * log_var))
    z = q.rsample()
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    return (kl - Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)).mean()


def loss(x):
    mean, log_var = encoder(x).chunk(2, -1)
    z, _ = ops.gaussian_sample(mean, log_var)  # z is [B, 1, 50]; the second output is log q(z|x), [B, 1]
    kl = ops.gaussian_kl(mean, log_var)  # KL to N(0, I), [B]
    return (kl - ops.bernoulli_log_prob(decoder(z.squeeze(1)), x)).mean()


def seconds(function, repetitions=200):
    """Returns the time of the fastest step, forward and backward."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function(x).backward()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    print(f"plain PyTorch {plain_loss(x).item():.2f} nats, {1e6 * seconds(plain_loss):.0f} µs a step")
    print(f"dgmfast       {loss(x).item():.2f} nats, {1e6 * seconds(loss):.0f} µs a step")

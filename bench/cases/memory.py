"""`python -m bench.cases.memory CASE CONTENDER K DEVICE THREADS` prints time and memory of L_K, or of a step on it, as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from bench.cases.likelihood import benchmark_vae, images
from bench.rivals.likelihood import eager_log_likelihood
from dgmfast import evaluate
from dgmfast.models import VAE
from dgmfast.objectives import Objective

COUNT, TRAINED = 8, 20  # number of images in an evaluation, and in a training step
CHUNK = 50  # number of samples per row that a training step holds at a time


def status(field: str) -> int:
    """Returns the memory of this process in bytes, now (VmRSS) or at its peak (VmHWM); ru_maxrss would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def step(model: VAE, x: Tensor, k: int, chunk: int) -> None:
    """Computes the loss and gradient of L_K, `chunk` samples of a row at a time (0: all at once)."""
    model.zero_grad()
    Objective(k=k, chunk=chunk).loss(model, x, None, 1.0, 0)[0].backward()


WORK = {
    ("memory", "ours"): lambda model, x, k: evaluate.log_likelihood(model, x, k=k),
    ("memory", "eager"): lambda model, x, k: eager_log_likelihood(model, x, k=k),
    ("training_memory", "ours"): lambda model, x, k: step(model, x, k, CHUNK),
    ("training_memory", "all at once"): lambda model, x, k: step(model, x, k, 0),
}


def main(case: str, contender: str, k: int, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model, x = benchmark_vae(device), images(COUNT if case == "memory" else TRAINED, device)
    work = WORK[case, contender]
    work(model, x[:1], 2)  # the first call loads code, whose memory must not count
    before = status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()
    start = time.perf_counter()
    work(model, x, k)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"peak_bytes": peak, "grown_bytes": peak - before, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))

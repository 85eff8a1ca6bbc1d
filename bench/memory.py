"""`python -m bench.memory CONTENDER K DEVICE THREADS`: the peak memory of one evaluation of L_K, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from bench.eager_likelihood import eager_log_likelihood
from bench.likelihood import benchmark_vae, images
from dgmfast import evaluate

COUNT = 8


def status(field: str) -> int:
    """VmRSS or VmHWM, the memory of this process now or at most, in bytes. (ru_maxrss would count the parent's, too.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(contender: str, k: int, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model, x = benchmark_vae(device), images(COUNT, device)
    before = status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()
    if contender == "ours":
        evaluate.log_likelihood(model, x, k=k)
    else:
        eager_log_likelihood(model, x, k=k)
    peak = status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"peak_bytes": peak, "grown_bytes": peak - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

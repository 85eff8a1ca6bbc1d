"""The ceilings of the machine, measured in the same run: memory bandwidth, exponentials and matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from bench.cases.op_cases import Context
from bench.store import Row

Work = tuple[Callable[[], object], float, str]  # (function to time, amount of work in one call, unit of the rate)


@dataclass(frozen=True)
class FloorCase:
    """Measures the ceilings with which the other cases are compared."""

    name: str = "floor"

    def groups(self, context: Context) -> list[Row]:
        if context.malloc != "default":
            return []
        shapes = ("read bandwidth", "exp", "sgemm") if context.device == "cpu" else ("copy bandwidth", "sgemm", "bf16 gemm")
        return [context.columns() | {"case": self.name, "shape": s, "mode": "", "dtype": ""} for s in shapes]

    def run(self, context: Context) -> Iterator[list[Row]]:
        rounds = 5 if context.quick else 15
        for columns in self.groups(context):
            works = (cpu_floors if context.device == "cpu" else gpu_floors)(str(columns["shape"]), context.quick)
            best = {name: amount / _fastest(work, rounds, context.device) for name, (work, amount, _) in works.items()}
            winner = max(best, key=lambda name: best[name])
            row = {"contender": winner, "status": "ok", "rate": best[winner], "unit": works[winner][2]}
            yield [columns | row]


def cpu_floors(name: str, quick: bool) -> Mapping[str, Work]:
    """Returns several ways to reach a ceiling; the fastest one counts."""
    if name == "read bandwidth":
        x = torch.ones(2**24 if quick else 2**26)
        ways: dict[str, Callable[[], object]] = {"sum": x.sum, "amax": x.amax}
        ways |= {"norm": lambda: torch.linalg.vector_norm(x), "dot": lambda: torch.dot(x, x)}
        return {way: (work, 4.0 * x.numel(), "B/s") for way, work in ways.items()}
    if name == "exp":
        x, out = torch.randn(2**17), torch.empty(2**17)  # both tensors stay in cache
        return {"torch.exp": (lambda: torch.exp(x, out=out), float(x.numel()), "1/s")}
    n = 512 if quick else 2048
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return {"torch.mm": (lambda: torch.mm(a, b, out=c), 2.0 * n**3, "FLOP/s")}


def gpu_floors(name: str, quick: bool) -> Mapping[str, Work]:
    """Returns the work for a ceiling of the GPU; a copy on the card counts the bytes read and the bytes written."""
    if name == "copy bandwidth":
        source = torch.randn(2**26 if quick else 2**30, device="cuda")
        target = torch.empty_like(source)
        return {"copy_": (lambda: target.copy_(source), 8.0 * source.numel(), "B/s")}
    dtype = torch.bfloat16 if name == "bf16 gemm" else torch.float32
    n = 2048 if quick else 8192
    a, b = torch.randn(n, n, device="cuda").to(dtype), torch.randn(n, n, device="cuda").to(dtype)
    return {"torch.mm": (lambda: torch.mm(a, b), 2.0 * n**3, "FLOP/s")}


def _fastest(work: Callable[[], object], rounds: int, device: str) -> float:
    times = []
    for _ in range(rounds + 3):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[3:])

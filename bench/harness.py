"""Checks contenders against float64, then times them in turns (A B C A B C …) and reports medians and quantiles."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.store import Row

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]
Call = Callable[[Inputs], Outputs]
Sampler = Callable[[], float]  # times a few calls and returns the seconds per call


@dataclass(frozen=True)
class Settings:
    """How long to measure: about `seconds` per contender, in samples of about `sample_seconds` of repeated calls."""

    seconds: float = 0.3
    min_rounds: int = 9
    max_rounds: int = 200
    sample_seconds: float = 1e-3


QUICK = Settings(seconds=0.03, min_rounds=3, max_rounds=20, sample_seconds=3e-4)


@dataclass(frozen=True)
class Verdict:
    """The distance of outputs from float64, and the largest accepted distance."""

    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


Check = Callable[[Inputs, Outputs], Verdict]


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    call: None if it cannot run here; `note` then says why.
    units: the number of images in one call.
    check: replaces the check of the case.
    """

    name: str
    call: Call | None
    note: str = ""
    units: int = 1
    check: Check | None = None


MakeSampler = Callable[[Contender, Sequence[Inputs], Settings], Sampler]


def relative_error(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Returns the largest ‖output − truth‖ / ‖truth‖, in float64."""
    if len(outputs) != len(truth):
        raise ValueError(f"{len(truth)} outputs expected, got {len(outputs)}")
    errors = []
    for output, expected in zip(outputs, truth, strict=True):
        if output.shape != expected.shape:
            raise ValueError(f"an output of shape {list(expected.shape)} expected, got {list(output.shape)}")
        scale = torch.linalg.vector_norm(expected)
        errors.append(float(torch.linalg.vector_norm(output.detach().to(expected) - expected) / scale.clamp(min=1e-30)))
    return max(errors, key=lambda e: (e != e, e))  # NaN counts as the largest


def cpu_sampler(contender: Contender, inputs: Sequence[Inputs], settings: Settings) -> Sampler:
    """Times repeated calls on the first set of inputs with the wall clock."""
    call, first = _callable(contender), inputs[0]
    call(first)
    start = time.perf_counter()
    call(first)
    repeats = max(1, int(settings.sample_seconds / (time.perf_counter() - start)))

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call(first)
        return (time.perf_counter() - start) / repeats

    return sample


def _callable(contender: Contender) -> Call:
    if contender.call is None:
        raise ValueError(f"{contender.name} cannot run: {contender.note}")
    return contender.call


def interleave(samplers: Mapping[str, Sampler], settings: Settings) -> dict[str, list[float]]:
    """Samples every contender once per round, so that a drift of the machine affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for sample in samplers.values():
        sample()
    gc.collect()
    gc.disable()
    try:
        start, rounds = time.perf_counter(), 0
        while samplers and rounds < settings.max_rounds:
            for name, sample in samplers.items():
                times[name].append(sample())
            rounds += 1
            if rounds >= settings.min_rounds and time.perf_counter() - start > settings.seconds * len(samplers):
                break
    finally:
        gc.enable()
    return times


def measure(
    contenders: Sequence[Contender],
    inputs: Sequence[Inputs],
    check: Check,
    settings: Settings,
    make_sampler: MakeSampler = cpu_sampler,
) -> list[Row]:
    """Returns one row per contender: its distance from float64 and, unless it is wrong or cannot run, its times in seconds."""
    rows, samplers = [], {}
    for contender in contenders:
        row: Row = {"contender": contender.name, "note": contender.note, "status": "ok", "units": contender.units}
        rows.append(row)
        if contender.call is None:
            row["status"] = "not installed"
            continue
        try:
            verdict = (contender.check or check)(inputs[0], contender.call(inputs[0]))
            row |= {"error": verdict.error, "tolerance": verdict.tolerance}
            if verdict.passed:
                samplers[contender.name] = make_sampler(contender, inputs, settings)
            else:
                row["status"] = "wrong"
        except Exception as error:  # the failure of one contender must not end the run of the others
            row |= {"status": "failed", "note": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]}
    times = interleave(samplers, settings)
    for row in rows:
        if row["contender"] in times:
            row |= summarise([t / row["units"] for t in times[row["contender"]]])
    return rows


def summarise(times: Sequence[float]) -> dict[str, Any]:
    """Returns the median and the 20 % and 80 % quantiles."""
    cuts = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else [times[0]] * 4
    return {"median_s": statistics.median(times), "q20_s": cuts[0], "q80_s": cuts[3], "rounds": len(times)}


def progress_line(rows: Sequence[Row]) -> str:
    """Formats the times of one group: ours first, then each rival's as a multiple of ours."""
    timed = {row["contender"]: row["median_s"] for row in rows if "median_s" in row}
    ours = timed.pop("ours", None)
    parts = [] if ours is None else [f"ours {format_seconds(ours)}"]
    parts += [f"{name} {format_seconds(t) if ours is None else f'{t / ours:.2f}x'}" for name, t in timed.items()]
    parts += [f"{row['contender']} {row['status'].upper()}" for row in rows if row["status"] not in ("ok", "not installed")]
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Formats a time, for example as 1.23 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"

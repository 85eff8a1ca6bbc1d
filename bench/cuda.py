"""Timing on a GPU with CUDA events. The inputs rotate through more memory than the L2 cache holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench.harness import Check, Contender, Inputs, Outputs, Sampler, Settings

ROTATED_BYTES = 2**28  # several times the L2 cache of any card so far
MAX_SETS = 256
WARM_UP = 3


def copies_needed(inputs: Inputs) -> int:
    """Returns the number of input sets to rotate through."""
    size = sum(t.numel() * t.element_size() for t in inputs)
    return max(2, min(MAX_SETS, ROTATED_BYTES // max(1, size) + 1))


def _timed(work: Callable[[], None], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def uncaptured_sampler(contender: Contender, inputs: Sequence[Inputs], settings: Settings) -> Sampler:
    """Times calls as Python issues them; at small sizes this measures the cost of launching."""
    call = contender.call
    assert call is not None
    for i in range(WARM_UP):
        call(inputs[i % len(inputs)])
    torch.cuda.synchronize()
    one = _timed(lambda: _discard(call(inputs[0])), 1)
    repeats = max(1, int(settings.sample_seconds / one))
    turn = 0

    def run() -> None:
        nonlocal turn
        for _ in range(repeats):
            call(inputs[turn % len(inputs)])
            turn += 1

    return lambda: _timed(run, repeats)


def captured_sampler(check: Check) -> Callable[[Contender, Sequence[Inputs], Settings], Sampler]:
    """Times the replay of a CUDA graph with one call per set of inputs; this measures the kernels without the launches."""

    def make(contender: Contender, inputs: Sequence[Inputs], settings: Settings) -> Sampler:
        call = contender.call
        assert call is not None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(WARM_UP):
                call(inputs[i % len(inputs)])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        outputs: Outputs = ()
        with torch.cuda.graph(graph):
            for one in inputs:
                outputs = call(one)
        graph.replay()
        if not (verdict := check(inputs[-1], outputs)).passed:
            raise ValueError(f"wrong when replayed from a graph: error {verdict.error:.1e}")
        return lambda: _timed(graph.replay, len(inputs))

    return make


def _discard(_: Outputs) -> None:
    return None

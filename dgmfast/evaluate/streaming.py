"""The importance weights of many rows, streamed: each x is encoded once, and memory does not grow with the number of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgmfast.errors import InputError, check_count
from dgmfast.evaluate.blocks import Block, BlockSampler, ImportanceSampling, OrderedThreadPool, pad, pad_labels
from dgmfast.evaluate.memory import ENCODER_BLOCK, ENCODER_ROWS, ChunkUntilItFits, max_block_rows
from dgmfast.models import Encoding, GenerativeModel, Label


@dataclass
class RowResults:
    """The results of the finished rows: states [N, P, 5] of `ops.importance_state` at the P points of the sampling, and k̂ [N].

    A row that stopped before a point has its last state there.
    """

    states: list[Tensor] = field(default_factory=list)
    pareto_k: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(part) for part in self.pareto_k)

    def add(self, states: Tensor, pareto_k: Tensor) -> None:
        """Append the results of some rows."""
        self.states.append(states)
        self.pareto_k.append(pareto_k)

    def join(self) -> None:
        """Concatenate all parts into one."""
        self.states, self.pareto_k = [torch.cat(self.states)], [torch.cat(self.pareto_k)]

    def tensors(self, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """All results in one piece: states [N, P, 5] and k̂ [N], float64."""
        none = torch.zeros(0, points, 5, dtype=torch.float64, device=device)
        return torch.cat([none, *self.states]), torch.cat([none[:, 0, 0], *self.pareto_k])


def curve_points(k: int, *more: int) -> tuple[int, ...]:
    """The sample counts 1, 10, 100, ... up to k, the counts in `more`, and k itself."""
    powers = (10**i for i in range(len(str(k))))
    return tuple(sorted({*powers, *more, k}))


def check_arguments(model: GenerativeModel, x: Tensor, k: int, y: Label, chunk: int | None, tolerance: float | None) -> None:
    """Raise InputError unless `log_likelihood` takes these arguments."""
    check_count("log_likelihood", "k", k)
    if chunk is not None:
        check_count("log_likelihood", "chunk", chunk)
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0.0 < tolerance < math.inf):
        raise InputError(f"log_likelihood: tolerance must be a positive number of nats; got {tolerance!r}")
    model.check("log_likelihood", x, y)


@torch.no_grad()
def stream(
    model: GenerativeModel,
    x: Tensor,
    y: Label,
    sampling: ImportanceSampling,
    rows: RowResults,
    first_row: int = 0,
    advance: Callable[[int], None] = lambda samples: None,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Compute the rows of x [N, D] that are not in `rows` yet, and add their results to it, in evaluation mode.

    Args:
        model: The model; its mode is restored afterwards.
        x: [N, D].
        y: As in `log_likelihood`.
        sampling: The settings.
        rows: The results so far, those of the first rows of x.
        first_row: Coordinate of x[0] in the noise.
        advance: Called with the number of samples that have been finished since the last call.
        finished: Called whenever results of further rows have been added.
    """
    training = model.training
    model.eval()  # before the blocks are chosen, because they depend on the mode

    def blocks() -> Iterator[Block]:
        for first in range(len(rows) // ENCODER_BLOCK * ENCODER_BLOCK, len(x), ENCODER_BLOCK):
            part = slice(first, first + ENCODER_BLOCK)
            end = min(first + ENCODER_BLOCK, len(x))
            padded = math.ceil((end - first) / whole) * whole
            encoding = _encode(model, pad(x[part], padded), pad_labels(y, part, padded), halved)
            for row in range(max(first, done), end, draws.rows):
                inside = slice(row - first, row - first + draws.rows)
                count = min(draws.rows, end - row)
                block_x = pad(x[row : row + count], draws.rows)
                block_y = pad_labels(y, slice(row, row + count), draws.rows)
                block_encoding = {name: value[inside] for name, value in encoding.items()}
                yield Block(draws, block_encoding, block_x, block_y, first_row + row, count)

    done = len(rows)
    try:
        draws = BlockSampler(model, sampling, x.device)
        at_once = min(
            ENCODER_ROWS["cpu" if x.device.type == "cpu" else "cuda"], 2 ** int(math.log2(max_block_rows(model, x.device)))
        )
        halved, whole = ChunkUntilItFits("rows encoded at once", at_once), max(at_once, draws.rows)
        with OrderedThreadPool(x.device) as in_order:
            if in_order.alone or len(x) - done <= draws.rows * (in_order.threads - 1):  # fewer blocks than threads
                for (block, sample), drawn in in_order.results(draws.log_weights, draws.tasks(blocks())):
                    if block.done or drawn is None:
                        continue
                    advance(block.add(sample, *drawn))
                    if block.done:
                        rows.add(*block.results())
                        finished()
            else:
                try:
                    for _, (samples, results) in in_order.results(draws.run, blocks()):
                        advance(samples)
                        rows.add(*results)
                        finished()
                finally:
                    draws.stopped = True
    finally:
        model.train(training)


def _encode(model: GenerativeModel, x: Tensor, y: Label, halved: ChunkUntilItFits) -> Encoding:
    """Encode x, with fewer rows at once if memory runs out."""

    def encode(first: int, count: int) -> Encoding:
        part = slice(first, first + count)
        return model.encode(x[part], pad_labels(y, part, count))

    parts = halved.run(len(x), encode)
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

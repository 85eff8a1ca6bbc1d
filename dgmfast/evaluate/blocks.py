"""Blocks of rows whose samples go through the decoder together, and the thread pool that computes them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.evaluate.memory import ChunkUntilItFits, block_shape, chunk_from_memory
from dgmfast.evaluate.pareto import Tail
from dgmfast.models import Encoding, GenerativeModel, Label, Noise, Terms
from dgmfast.ops import ImportanceState

R = TypeVar("R")
T = TypeVar("T")

STEP = 250  # samples between two checks of the standard errors; fewer would be too few for the delta method


@dataclass(frozen=True)
class ImportanceSampling:
    """The settings of an evaluation.

    Args:
        k: Number of samples per row.
        seed: Seed of the noise.
        points: The values of K at which a row's state is kept; the last one is k.
        tolerance: In nats. A row stops after a multiple of STEP samples, once its standard error is below it.
        chunk: Number of rows × samples between two checks of the weights; None chooses it from the free memory.
    """

    k: int
    seed: int
    points: tuple[int, ...]
    tolerance: float | None = None
    chunk: int | None = None


class BlockSampler:
    """Draws the samples of blocks and computes their log weights. It also chooses the shape of a block."""

    def __init__(self, model: GenerativeModel, sampling: ImportanceSampling, device: torch.device) -> None:
        self.model, self.sampling = model, sampling
        k = sampling.k if sampling.tolerance is None else min(sampling.k, STEP)
        self.rows, self.samples = block_shape(model, k, device)
        chunk = sampling.chunk or chunk_from_memory(model, device)
        self.steps = max(1, chunk // (self.rows * self.samples))  # groups of samples between two checks of the weights
        self.halved = ChunkUntilItFits("samples drawn at once")
        self.stopped = False

    def tasks(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, int]]:
        """Yield every block together with the first sample of each of its groups."""
        return ((block, sample) for block in blocks for sample in range(0, self.sampling.k, self.samples))

    def run(self, block: Block) -> tuple[int, tuple[Tensor, Tensor]]:
        """Compute all weights of a block. Returns the number of finished samples and the block's results."""
        samples = 0
        for task in self.tasks(iter([block])):
            drawn = None if self.stopped else self.log_weights(task)
            if drawn is None:
                break
            samples += block.add(task[1], *drawn)
        return samples, block.results()

    def log_weights(self, task: tuple[Block, int]) -> tuple[Tensor, Terms] | None:
        """log w [rows, samples] of a group of samples, and the last terms that they came from; None if the block is done."""
        block, sample = task
        if block.done:
            return None

        def draw(first: int, count: int) -> tuple[Tensor, Terms]:
            noise = Noise(self.sampling.seed, block.row, sample + first)
            terms = self.model.draw(block.encoding, block.x, count, noise, block.y)
            return terms.log_weights(), terms

        parts = self.halved.run(self.samples, draw)
        return parts[0][0] if len(parts) == 1 else torch.cat([log_w for log_w, _ in parts], 1), parts[-1][1]


class Block:
    """Rows whose samples go through the decoder together, and the statistics of their weights.

    The first `count` rows are real; the others are padding.
    """

    def __init__(self, draws: BlockSampler, encoding: Encoding, x: Tensor, y: Label, row: int, count: int) -> None:
        self.draws, self.encoding, self.x, self.y, self.row, self.count = draws, encoding, x, y, row, count
        self.state, self.tail, self.done = ImportanceState(), Tail(draws.sampling.k), False
        self.kept: list[Tensor] = []
        self.live = torch.arange(len(x), device=x.device) < count

    def add(self, sample: int, log_w: Tensor, terms: Terms) -> int:
        """Add the weights of a group that starts at `sample`; return the number of samples that this finishes, over all rows."""
        sampling = self.draws.sampling
        k, tolerance = sampling.k, sampling.tolerance
        # The last group may reach beyond k samples; the surplus is dropped.
        log_w = log_w[:, : k - sample]
        width, begin = log_w.shape[1], 0
        cuts = {point - sample for point in sampling.points if sample < point <= sample + width}
        for end in sorted(cuts | {width}):
            self.state = _update(self.state, log_w[:, begin:end], self.live if tolerance is not None and sample else None)
            if end in cuts:
                self.kept.append(self.state.values)
            begin = end
        self.tail.update(log_w if tolerance is None else log_w.where(self.live.unsqueeze(1), -math.inf))
        drawn = sample + width
        if (sample // self.draws.samples + 1) % self.draws.steps == 0 or drawn == k or tolerance is not None:
            _check_finite(self.state, terms, self.row)
        if tolerance is not None and drawn < k:
            self.live &= self.state.std_error >= tolerance
        self.done = drawn == k or not self.live.any()
        return self.count * (k - sample if self.done else width)

    def results(self) -> tuple[Tensor, Tensor]:
        """The states [count, P, 5] and k̂ [count]."""
        kept = self.kept + [self.state.values] * (len(self.draws.sampling.points) - len(self.kept))
        return torch.stack(kept, 1)[: self.count], self.tail.pareto_k(self.state.values[:, 4])[: self.count]


class OrderedThreadPool:
    """Runs tasks on a thread pool and yields their results in order.

    On a CPU with several threads, each worker computes a task alone, with one thread: no product waits for another thread, and no
    result depends on the number of threads.
    """

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        # Autocast and inference mode are set per thread and would not reach the workers.
        self.alone = self.threads == 1 or torch.is_autocast_enabled(device.type) or torch.is_inference_mode_enabled()
        self.pool = None if self.alone else ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> OrderedThreadPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)  # the workers changed the setting for new threads

    def results(self, work: Callable[[T], R], things: Iterator[T]) -> Iterator[tuple[T, R]]:
        """Yield each task together with work(task), in order; a few tasks are computed ahead."""
        if self.pool is None:
            yield from ((thing, work(thing)) for thing in things)
            return
        pending: deque[tuple[T, Future[R]]] = deque()
        without_gradient = torch.no_grad()(work)
        for thing in things:
            pending.append((thing, self.pool.submit(without_gradient, thing)))
            if len(pending) > self.threads:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


def _update(state: ImportanceState, log_w: Tensor, live: Tensor | None) -> ImportanceState:
    """The state with log_w added in the rows that are live (None: in all rows)."""
    if live is None:
        return state.update(log_w)
    before = state.values
    return ImportanceState(state.update(log_w).values.where(live.unsqueeze(1), before))


def _check_finite(state: ImportanceState, terms: Terms, row: int) -> None:
    """Raise InputError if the weights of a row are not finite; the message names the row and the terms."""
    bad = state.values[:, :3].isfinite().logical_not().any(1)
    if not bad.any():
        return
    first = int(bad.nonzero()[0])
    named = {"log p(x|z)": terms.log_px, **{f"log p({n})": latent.log_p() for n, latent in terms.latents.items()}}
    named |= {f"log q({n})": latent.log_q for n, latent in terms.latents.items()}
    if terms.labels is not None and terms.log_py is not None:
        named["log p(y)"] = terms.log_py.expand(len(state.values), *terms.log_py.shape[-2:])
        if terms.labels.log_qy is not None:
            named["log q(y)"] = terms.labels.log_qy
    guilty = [name for name, term in named.items() if not term[first].isfinite().all()]
    raise InputError(
        f"log_likelihood: the weights of row {row + first} are not finite; look at {' and '.join(guilty) or 'log w'}"
    )


def pad(t: Tensor, rows: int) -> Tensor:
    """t with zero rows appended, up to `rows` rows."""
    return t if len(t) == rows else torch.cat([t, t.new_zeros(rows - len(t), *t.shape[1:])])


def pad_labels(y: Label, part: slice, rows: int) -> Label:
    """The part of y, padded to `rows` labels; y itself if it holds no labels."""
    return pad(y[part], rows) if isinstance(y, Tensor) else y

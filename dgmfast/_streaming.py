"""The importance weights of many rows, streamed: x is encoded once, and the memory does not grow with the number of samples."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dgmfast._pareto import Tail
from dgmfast.errors import InputError, check_count, out_of_memory
from dgmfast.models.base import Encoding, GenerativeModel, Label, Noise, Terms
from dgmfast.nn import PixelCNNDecoder
from dgmfast.ops import ImportanceState

# Rows (x, sample) that go through the decoder in one product. The shape of every product, and a row's place in it, depend on
# k and the model alone, so that no result depends on the chunk. On a CPU a block keeps the widest layer in a core's cache, but
# for at least 512 rows; narrow layers take more, because there the calls are what costs. Feature maps are wider than either: of
# those a block, and what is encoded at once, holds FEW_NUMBERS, or one row.
CACHED_NUMBERS = 2**18
FEW_NUMBERS = {"cpu": 2**21, "cuda": 2**28}
CPU_ROWS = (512, 8192)
CUDA_ROWS = 65536
ENCODER_BLOCK = 512
ENCODER_ROWS = {"cpu": 64, "cuda": ENCODER_BLOCK}  # that go through the encoder in one product
UNKNOWN_MEMORY = 2**30  # bytes taken to be free where the system does not say
STEP = 250  # samples between two looks at the standard errors: fewer would not support the delta method

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Sampling:
    """What is drawn: k samples per row, noise of `seed`, and the K at which a row's state is kept, the last of them k.

    tolerance: nats; a row stops after a multiple of STEP samples, once its standard error is below it.
    """

    k: int
    seed: int
    points: tuple[int, ...]
    tolerance: float | None = None
    chunk: int | None = None


@dataclass
class Rows:
    """The results of the rows so far: states [N, P, 5] as of `ops.importance_state`, at the points of a Sampling, and k̂ [N].

    The state of a row that stopped before a point is its last one.
    """

    states: list[Tensor] = field(default_factory=list)
    pareto_k: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(part) for part in self.pareto_k)

    def add(self, states: Tensor, pareto_k: Tensor) -> None:
        self.states.append(states)
        self.pareto_k.append(pareto_k)

    def join(self) -> None:
        """Keep all as one part."""
        self.states, self.pareto_k = [torch.cat(self.states)], [torch.cat(self.pareto_k)]

    def tensors(self, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """All as one: [N, P, 5] and [N], float64."""
        none = torch.zeros(0, points, 5, dtype=torch.float64, device=device)
        return torch.cat([none, *self.states]), torch.cat([none[:, 0, 0], *self.pareto_k])


def points(k: int, *more: int) -> tuple[int, ...]:
    """1, 10, 100, ... up to k, and k itself."""
    powers = (10**i for i in range(len(str(k))))
    return tuple(sorted({*powers, *more, k}))


def check(model: GenerativeModel, x: Tensor, k: int, y: Label, chunk: int | None, tolerance: float | None) -> None:
    """Raise InputError unless log_likelihood takes these arguments."""
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
    sampling: Sampling,
    rows: Rows,
    first_row: int = 0,
    advance: Callable[[int], None] = lambda samples: None,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Add to `rows` the results of the rows of x [N, D] that are not among them, in evaluation mode.

    first_row: the number of x[0] in the noise. advance: told of samples (of one row) that are done; finished: of more rows.
    """
    training = model.training
    model.eval()  # before the blocks are chosen, which depend on it

    def blocks() -> Iterator[_Block]:
        for first in range(len(rows) // ENCODER_BLOCK * ENCODER_BLOCK, len(x), ENCODER_BLOCK):
            part = slice(first, first + ENCODER_BLOCK)
            end = min(first + ENCODER_BLOCK, len(x))
            padded = math.ceil((end - first) / whole) * whole
            encoding = _encode(model, _pad(x[part], padded), _pad_labels(y, part, padded), halved)
            for row in range(max(first, done), end, draws.rows):
                inside = slice(row - first, row - first + draws.rows)
                count = min(draws.rows, end - row)
                block_x = _pad(x[row : row + count], draws.rows)
                block_y = _pad_labels(y, slice(row, row + count), draws.rows)
                block_encoding = {name: value[inside] for name, value in encoding.items()}
                yield _Block(draws, block_encoding, block_x, block_y, first_row + row, count)

    done = len(rows)
    try:
        draws = _Draws(model, sampling, x.device)
        at_once = min(ENCODER_ROWS["cpu" if x.device.type == "cpu" else "cuda"], 2 ** int(math.log2(_few(model, x.device))))
        halved, whole = _Halved("rows encoded at once", at_once), max(at_once, draws.rows)
        with _InOrder(x.device) as in_order:
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


def _encode(model: GenerativeModel, x: Tensor, y: Label, halved: _Halved) -> Encoding:
    def encode(first: int, count: int) -> Encoding:
        part = slice(first, first + count)
        return model.encode(x[part], _pad_labels(y, part, count))

    parts = halved.run(len(x), encode)
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Draws:
    """How many rows and samples go through the decoder together, and their weights."""

    def __init__(self, model: GenerativeModel, sampling: Sampling, device: torch.device) -> None:
        self.model, self.sampling = model, sampling
        k = sampling.k if sampling.tolerance is None else min(sampling.k, STEP)
        self.rows, self.samples = block_shape(model, k, device)
        chunk = sampling.chunk or _chunk_from_memory(model, device)
        self.steps = max(1, chunk // (self.rows * self.samples))  # between two checks
        self.halved = _Halved("samples drawn at once")
        self.stopped = False

    def tasks(self, blocks: Iterator[_Block]) -> Iterator[tuple[_Block, int]]:
        """Every block with the first of each of its groups of samples."""
        return ((block, sample) for block in blocks for sample in range(0, self.sampling.k, self.samples))

    def run(self, block: _Block) -> tuple[int, tuple[Tensor, Tensor]]:
        """All weights of a block: how many samples that leaves done, and its results."""
        samples = 0
        for task in self.tasks(iter([block])):
            drawn = None if self.stopped else self.log_weights(task)
            if drawn is None:
                break
            samples += block.add(task[1], *drawn)
        return samples, block.results()

    def log_weights(self, task: tuple[_Block, int]) -> tuple[Tensor, Terms] | None:
        """log w [rows, samples] from a sample on, and the last terms that they came from; None for a block that is done."""
        block, sample = task
        if block.done:
            return None

        def draw(first: int, count: int) -> tuple[Tensor, Terms]:
            noise = Noise(self.sampling.seed, block.row, sample + first)
            terms = self.model.draw(block.encoding, block.x, count, noise, block.y)
            return terms.log_weights(), terms

        parts = self.halved.run(self.samples, draw)
        return parts[0][0] if len(parts) == 1 else torch.cat([log_w for log_w, _ in parts], 1), parts[-1][1]


class _Block:
    """Rows whose samples go through the decoder together, and what is kept of their weights; the first `count` are no padding."""

    def __init__(self, draws: _Draws, encoding: Encoding, x: Tensor, y: Label, row: int, count: int) -> None:
        self.draws, self.encoding, self.x, self.y, self.row, self.count = draws, encoding, x, y, row, count
        self.state, self.tail, self.done = ImportanceState(), Tail(draws.sampling.k), False
        self.kept: list[Tensor] = []
        self.live = torch.arange(len(x), device=x.device) < count

    def add(self, sample: int, log_w: Tensor, terms: Terms) -> int:
        """Take up the weights from `sample` on; how many samples of a row that leaves done."""
        sampling = self.draws.sampling
        k, tolerance = sampling.k, sampling.tolerance
        # the last group may draw more than k: the surplus is dropped
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


class _InOrder:
    """Work on many things, whose results come in order. On a CPU of several threads each works alone on a thing of its own: no
    product waits for another thread, and no result depends on their number."""

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        # what is set for a thread alone does not reach others
        self.alone = self.threads == 1 or torch.is_autocast_enabled(device.type) or torch.is_inference_mode_enabled()
        self.pool = None if self.alone else ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> _InOrder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)  # the workers' setting is that of threads to come

    def results(self, work: Callable[[T], R], things: Iterator[T]) -> Iterator[tuple[T, R]]:
        """Each of the things with work(thing), a few of which are worked on ahead."""
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
    """The state with log_w added, in the rows that are live; None: in all."""
    if live is None:
        return state.update(log_w)
    before = state.values
    return ImportanceState(state.update(log_w).values.where(live.unsqueeze(1), before))


class _Halved:
    """Work on n things, at most `most` at a time if it is given, in parts that are halved for good where memory runs out."""

    def __init__(self, things: str, most: int = 0) -> None:
        self.things, self.most, self.warned = things, most, False

    def run(self, n: int, work: Callable[[int, int], T]) -> list[T]:
        """work(first, count) of parts that follow each other."""
        results: list[T] = []
        first = 0
        most = self.most or n
        while first < n:
            count = min(most, n - first)
            try:
                results.append(work(first, count))
                first += count
            except (MemoryError, RuntimeError) as error:
                if count == 1 or not out_of_memory(error):
                    raise
                if not self.warned:
                    warnings.warn(f"log_likelihood: out of memory with {count} {self.things}: halved", stacklevel=2)
                self.warned = True
                self.most = most = (count + 1) // 2
        return results


def _check_finite(state: ImportanceState, terms: Terms, row: int) -> None:
    """Raise InputError where a row's weights are not finite, naming the row and the guilty terms."""
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


def _widths(model: GenerativeModel, device: torch.device) -> list[int]:
    """The numbers of a row that each linear layer, and the widest of each PixelCNN, writes to memory."""
    fused = set(model.fused(device))
    modules = [m for m in model.modules() if m not in fused]
    linear = [m.out_features for m in modules if isinstance(m, torch.nn.Linear)]
    return [*linear, *(m.row_numbers for m in modules if isinstance(m, PixelCNNDecoder))] or [1]


def _few(model: GenerativeModel, device: torch.device) -> int:
    """Rows of which the widest layer makes FEW_NUMBERS."""
    return max(1, FEW_NUMBERS["cpu" if device.type == "cpu" else "cuda"] // max(_widths(model, device)))


def block_shape(model: GenerativeModel, k: int, device: torch.device) -> tuple[int, int]:
    """(rows, samples) of a block: nearly equal shares of k, and a power of two of rows to fill the block."""
    widest, limit = max(_widths(model, device)), _few(model, device)
    least, most = CPU_ROWS
    size = min(limit, max(least, min(most, CACHED_NUMBERS // widest)) if device.type == "cpu" else CUDA_ROWS)
    samples = math.ceil(k / math.ceil(k / size))
    return min(ENCODER_BLOCK, 2 ** int(math.log2(max(1, size // samples)))), samples


def _pad(t: Tensor, rows: int) -> Tensor:
    return t if len(t) == rows else torch.cat([t, t.new_zeros(rows - len(t), *t.shape[1:])])


def _pad_labels(y: Label, part: slice, rows: int) -> Label:
    return _pad(y[part], rows) if isinstance(y, Tensor) else y


def _chunk_from_memory(model: GenerativeModel, device: torch.device) -> int:
    """Rows whose activations would take about a tenth of the free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
            free = UNKNOWN_MEMORY
    return max(1, int(free / 10 / (4 * sum(_widths(model, device)))))


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def progress_bar(total: int, show: bool, initial: int = 0):
    """A bar over the samples of all rows, with the time left."""
    if not show:
        return _NoBar()
    from tqdm import tqdm  # not a dependency of the ops and models

    return tqdm(total=total, initial=initial, unit="sample", unit_scale=True, desc="log p(x)")

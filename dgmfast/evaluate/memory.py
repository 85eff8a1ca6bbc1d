"""How many rows and samples go through a model at once, and what happens if memory runs out."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from dgmfast.errors import out_of_memory
from dgmfast.models import GenerativeModel

T = TypeVar("T")


# These constants limit the rows, pairs of x and sample, that go through the decoder in one product. The shape of every
# product, and the place of a row in it, depend only on k and the model, so that no result depends on the chunk. On a CPU, a
# block is small enough that the widest layer (CACHED_NUMBERS) stays in a core's cache, but has at least 512 rows. Narrow
# layers get more rows, because there the overhead of the calls dominates. Feature maps are so wide that a block, and the rows
# encoded at once, are limited to FEW_NUMBERS in the widest layer, or to one row.
CACHED_NUMBERS = 2**18
FEW_NUMBERS = {"cpu": 2**21, "cuda": 2**28}
CPU_ROWS = (512, 8192)
CUDA_ROWS = 65536
ENCODER_BLOCK = 512
ENCODER_ROWS = {"cpu": 64, "cuda": ENCODER_BLOCK}  # rows in one product of the encoder
UNKNOWN_MEMORY = 2**30  # bytes that are assumed to be free if the system does not tell


def layer_widths(model: GenerativeModel, device: torch.device) -> list[int]:
    """How many numbers each layer writes for one row: linear layers, and modules with `row_numbers` (a PixelCNN)."""
    fused = set(model.fused(device))
    modules = [m for m in model.modules() if m not in fused]
    linear = [m.out_features for m in modules if isinstance(m, torch.nn.Linear)]
    others = [getattr(m, "row_numbers", None) for m in modules]
    return [*linear, *(n for n in others if isinstance(n, int))] or [1]


def max_block_rows(model: GenerativeModel, device: torch.device) -> int:
    """The number of rows for which the widest layer has FEW_NUMBERS numbers."""
    return max(1, FEW_NUMBERS["cpu" if device.type == "cpu" else "cuda"] // max(layer_widths(model, device)))


def block_shape(model: GenerativeModel, k: int, device: torch.device) -> tuple[int, int]:
    """(rows, samples) of a block: nearly equal shares of k, and as many rows, a power of two, as fill the block."""
    widest, limit = max(layer_widths(model, device)), max_block_rows(model, device)
    least, most = CPU_ROWS
    size = min(limit, max(least, min(most, CACHED_NUMBERS // widest)) if device.type == "cpu" else CUDA_ROWS)
    samples = math.ceil(k / math.ceil(k / size))
    return min(ENCODER_BLOCK, 2 ** int(math.log2(max(1, size // samples)))), samples


def chunk_from_memory(model: GenerativeModel, device: torch.device) -> int:
    """The number of rows whose activations would take about a tenth of the free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # macOS and Windows do not tell
            free = UNKNOWN_MEMORY
    return max(1, int(free / 10 / (4 * sum(layer_widths(model, device)))))


class ChunkUntilItFits:
    """Processes n things in parts, and halves the size of the parts for good whenever memory runs out.

    `most` limits the size of a part; 0 means no limit.
    """

    def __init__(self, things: str, most: int = 0) -> None:
        self.things, self.most, self.warned = things, most, False

    def run(self, n: int, work: Callable[[int, int], T]) -> list[T]:
        """The results of work(first, count) for consecutive parts."""
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

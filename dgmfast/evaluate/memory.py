"""How many rows and samples go through a model at once, and what happens when memory runs out."""

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


def layer_widths(model: GenerativeModel, device: torch.device) -> list[int]:
    """How many numbers of a row each linear layer writes to memory, and each module with `row_numbers`, a PixelCNN."""
    fused = set(model.fused(device))
    modules = [m for m in model.modules() if m not in fused]
    linear = [m.out_features for m in modules if isinstance(m, torch.nn.Linear)]
    others = [getattr(m, "row_numbers", None) for m in modules]
    return [*linear, *(n for n in others if isinstance(n, int))] or [1]


def max_block_rows(model: GenerativeModel, device: torch.device) -> int:
    """Rows of which the widest layer makes FEW_NUMBERS."""
    return max(1, FEW_NUMBERS["cpu" if device.type == "cpu" else "cuda"] // max(layer_widths(model, device)))


def block_shape(model: GenerativeModel, k: int, device: torch.device) -> tuple[int, int]:
    """(rows, samples) of a block: nearly equal shares of k, and a power of two of rows to fill the block."""
    widest, limit = max(layer_widths(model, device)), max_block_rows(model, device)
    least, most = CPU_ROWS
    size = min(limit, max(least, min(most, CACHED_NUMBERS // widest)) if device.type == "cpu" else CUDA_ROWS)
    samples = math.ceil(k / math.ceil(k / size))
    return min(ENCODER_BLOCK, 2 ** int(math.log2(max(1, size // samples)))), samples


def chunk_from_memory(model: GenerativeModel, device: torch.device) -> int:
    """Rows whose activations would take about a tenth of the free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
            free = UNKNOWN_MEMORY
    return max(1, int(free / 10 / (4 * sum(layer_widths(model, device)))))


class ChunkUntilItFits:
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

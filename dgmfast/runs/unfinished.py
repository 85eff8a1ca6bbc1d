"""The rows that an interrupted evaluation has done, kept beside the run so that the same command goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgmfast.errors import InputError
from dgmfast.evaluate import RowResults
from dgmfast.files import write_atomically

SAVE_SECONDS = 10.0  # what a kill loses at most, beside the block of rows that is being computed


class EvaluationCheckpoint:
    """A file of finished rows, under a name made of all that they depend on: other settings have a file of their own."""

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        """depends_on: what can be written as JSON."""
        self.key = json.dumps(depends_on, sort_keys=True)
        self.path = folder / f"evaluation.partial-{hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()}.npz"
        self.start = self.saved_at = time.monotonic()
        self.seconds = 0.0  # of earlier sessions

    def load(self, points: int, device: torch.device, most: int) -> RowResults:
        """The rows that are done, at most `most`, with P = `points` states each; none where there is no file.

        Raises:
            InputError: the file is damaged.
        """
        if not self.path.exists():
            return RowResults()
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as file:
                states, pareto_k = (torch.from_numpy(file[name]).to(device) for name in ("states", "pareto_k"))
                if file["key"].item() != self.key or states.shape != (len(pareto_k), points, 5) or len(pareto_k) > most:
                    raise ValueError("other settings")
                if states.dtype != torch.float64 or pareto_k.dtype != torch.float64:
                    raise ValueError(f"states of {states.dtype} and pareto_k of {pareto_k.dtype}")
                counts = states[..., 4]
                if not states.isfinite().all() or not ((counts >= 1) & (counts == counts.round())).all():
                    raise ValueError("states that no weights have")
                if pareto_k.isinf().any():
                    raise ValueError("an infinite pareto_k")
                seconds = float(file["seconds"])
                if not 0.0 <= seconds < math.inf:
                    raise ValueError(f"{seconds} seconds")
                self.seconds = seconds
        except Exception as error:  # numpy raises almost anything on a damaged archive
            raise InputError(f"{self.path}: expected the rows of an interrupted evaluation; got {error}: remove it") from error
        return RowResults([states], [pareto_k])

    def save(self, rows: RowResults) -> None:
        """Write all rows (InputError on a full disk)."""
        if len(rows) == 0:
            return
        rows.join()
        buffer = io.BytesIO()
        arrays = {"states": rows.states[0].cpu().numpy(), "pareto_k": rows.pareto_k[0].cpu().numpy()}
        np.savez(buffer, key=np.array(self.key), seconds=self.total_seconds(), **arrays)  # type: ignore[arg-type]
        write_atomically(self.path, buffer.getvalue())
        self.saved_at = time.monotonic()

    def save_sometimes(self, rows: RowResults) -> None:
        """Write all rows if the last time is long ago."""
        if time.monotonic() >= self.saved_at + SAVE_SECONDS:
            self.save(rows)

    def total_seconds(self) -> float:
        """Of all sessions."""
        return self.seconds + time.monotonic() - self.start

    def remove(self) -> None:
        """The evaluation is written."""
        self.path.unlink(missing_ok=True)

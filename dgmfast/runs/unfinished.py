"""Saves the finished rows of an evaluation in the run folder, so that the same command continues after an interruption."""

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

SAVE_SECONDS = 10.0  # a kill loses at most this time and the block of rows that is being computed


class EvaluationCheckpoint:
    """A file of finished rows. Its name depends on all settings of the evaluation, so that other settings have another file."""

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        """`depends_on` holds everything that the rows depend on. It must be possible to write it as JSON."""
        self.key = json.dumps(depends_on, sort_keys=True)
        self.path = folder / f"evaluation.partial-{hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()}.npz"
        self.start = self.saved_at = time.monotonic()
        self.seconds = 0.0  # time of earlier sessions

    def load(self, points: int, device: torch.device, most: int) -> RowResults:
        """The finished rows, at most `most`, with P = `points` states each. They are empty if there is no file.

        Raises:
            InputError: The file is damaged.
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
        """Write all rows.

        Raises:
            InputError: The file cannot be written.
        """
        if len(rows) == 0:
            return
        rows.join()
        buffer = io.BytesIO()
        arrays = {"states": rows.states[0].cpu().numpy(), "pareto_k": rows.pareto_k[0].cpu().numpy()}
        np.savez(buffer, key=np.array(self.key), seconds=self.total_seconds(), **arrays)  # type: ignore[arg-type]
        write_atomically(self.path, buffer.getvalue())
        self.saved_at = time.monotonic()

    def save_sometimes(self, rows: RowResults) -> None:
        """Write all rows if the last write was more than SAVE_SECONDS ago."""
        if time.monotonic() >= self.saved_at + SAVE_SECONDS:
            self.save(rows)

    def total_seconds(self) -> float:
        """The seconds that the evaluation took, over all sessions."""
        return self.seconds + time.monotonic() - self.start

    def remove(self) -> None:
        """Remove the file, once the evaluation has been written."""
        self.path.unlink(missing_ok=True)

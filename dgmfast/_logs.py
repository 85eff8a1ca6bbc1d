"""What a training run tells: metrics.jsonl, TensorBoard events and the progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dgmfast._files import disk_errors
from dgmfast._run import METRICS
from dgmfast.errors import InputError

LINE_SECONDS = 5.0  # between two lines where there is no terminal


class Metrics:
    """metrics.jsonl (one object per epoch) and the events beside it; the lock on the file keeps a second process out."""

    def __init__(self, folder: Path, length: int, epoch: int) -> None:
        """Continue after `length` bytes, which hold `epoch` epochs; what was written later is dropped.

        Raises:
            InputError: another process trains in the folder, the file is shorter than `length`, or it cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"training needs tensorboard, of the extra dgmfast[train]: {error}") from error
        self.path = folder / METRICS
        with disk_errors(self.path):
            self.file = self.path.open("ab")
            try:
                _lock(self.path, self.file.fileno())
                if self.file.seek(0, os.SEEK_END) < length:
                    raise InputError(
                        f"{self.path}: expected the {length} bytes that the checkpoint counts; got {self.file.tell()}"
                    )
                self.file.truncate(length)
                self.events = SummaryWriter(str(folder), purge_step=epoch + 1)
            except BaseException:
                self.file.close()
                raise

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch."""
        with disk_errors(self.path):
            self.file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            self.file.flush()
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self.events.add_scalar(name, value, record["epoch"])

    def sync(self) -> int:
        """Bring all to the disk, and return the length of metrics.jsonl in bytes."""
        with disk_errors(self.path):
            self.events.flush()
            self.file.flush()
            os.fsync(self.file.fileno())
            return self.file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with disk_errors(self.path):
                self.events.close()
                self.file.close()
        except InputError:
            if error is None:  # else the first error says it all
                raise


def _lock(path: Path, descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is training in {path.parent}") from error


class Progress:
    """A bar over all steps on a terminal, else now and then a line at the end of an epoch."""

    def __init__(self, name: str, epoch: int, epochs: int, steps: int, enabled: bool = True) -> None:
        self.enabled, self.name, self.epochs, self.bar, self.last_line = enabled, name, epochs, None, -LINE_SECONDS
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=epochs * steps, initial=epoch * steps, unit="step", dynamic_ncols=True, smoothing=0.05)
            self.bar.set_description(f"{name} epoch {epoch}/{epochs}", refresh=False)

    def steps(self, count: int) -> None:
        """`count` more steps are done."""
        if self.bar is not None:
            self.bar.update(count)

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done."""
        bounds = " ".join(f"{name} {value:.2f}" for name, value in record.items() if name.endswith("elbo"))
        errors = "".join(f", {name} {value:.2f} %" for name, value in record.items() if name.endswith("error"))
        told = f"{bounds} nats{errors}"
        title = f"{self.name} epoch {record['epoch']}/{self.epochs}"
        if self.bar is not None:
            self.bar.set_description(title, refresh=False)
            self.bar.set_postfix_str(told)
        elif self.enabled and (time.monotonic() >= self.last_line + LINE_SECONDS or record["epoch"] == self.epochs):
            self.last_line = time.monotonic()
            print(f"{title}: {told}, {record['seconds']:.2f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            self.bar.close()

"""metrics.jsonl and the TensorBoard events of a training run."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dgmfast.errors import INSTALL, InputError
from dgmfast.files import NEW, disk_errors, parse_json
from dgmfast.runs.folder import METRICS

APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class Metrics:
    """metrics.jsonl (one JSON object per epoch) and the TensorBoard events. A lock on the file keeps other processes out."""

    def __init__(self, folder: Path, length: int, epoch: int, step: int) -> None:
        """Continue after `length` bytes, which hold `epoch` epochs with `step` steps in total. Later lines are removed.

        Raises:
            InputError: Another process trains in the folder, the bytes are not those epochs, or the file cannot be written.
        """
        self.path = folder / METRICS
        if self.path.is_symlink():
            raise InputError(f"cannot write {self.path}: it is a symbolic link; remove it, or put the file in its place")
        with disk_errors(self.path):
            self.file = os.fdopen(os.open(self.path, APPEND, 0o666), "ab")
            try:
                _lock(self.path, self.file.fileno())
                if self.file.seek(0, os.SEEK_END) < length:
                    raise InputError(
                        f"{self.path}: expected the {length} bytes that the checkpoint counts; got {self.file.tell()}"
                    )
                self._check(length, epoch, step)
                self.file.truncate(length)
                self.events = _Events(folder, epoch + 1)
            except BaseException:
                self.file.close()
                raise

    def _check(self, length: int, epoch: int, step: int) -> None:
        """Raise InputError unless the first `length` bytes are `epoch` epochs with `step` steps in total."""
        lines = self.path.read_bytes()[:length].splitlines(keepends=True)
        try:
            last = parse_json(lines[-1]) if lines else {"epoch": 0, "step": 0}
            whole = not lines or lines[-1].endswith(b"\n")
            if whole and len(lines) == epoch and (last["epoch"], last["step"]) == (epoch, step):
                return
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(f"{self.path}: expected the {epoch} epochs of {step} steps that the checkpoint counts; got other lines")

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch."""
        with disk_errors(self.path):
            self.file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            self.file.flush()
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self.events.add(name, value, record["epoch"])

    def sync(self) -> int:
        """Flush everything to the disk, and return the length of metrics.jsonl in bytes."""
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
            if error is None:  # otherwise the first error is the one to report
                raise


class _Events:
    """The numbers of a run as TensorBoard events.

    They are written directly. SummaryWriter would write them in a thread, which reports a full disk by a traceback.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Start a new file. TensorBoard then ignores events from `first_step` on in older files of the folder.

        Raises:
            InputError: TensorBoard is not installed.
        """
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise InputError(f"training needs tensorboard: {error}; {INSTALL}") from error
        self.event, self.summary = event_pb2, summary_pb2
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self.file = os.fdopen(os.open(folder / name, NEW, 0o666), "wb")
        self.records = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        self._write(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START), step=first_step)

    def _write(self, **fields: Any) -> None:
        self.records.write(self.event.Event(wall_time=time.time(), **fields).SerializeToString())

    def add(self, name: str, value: float, step: int) -> None:
        """Add the value of `name` in epoch `step`."""
        scalar = self.summary.Summary.Value(tag=name, simple_value=value)
        self._write(step=step, summary=self.summary.Summary(value=[scalar]))

    def flush(self) -> None:
        """Write all events to the file."""
        self.records.flush()

    def close(self) -> None:
        """Write all events to the file, and close it."""
        self.records.close()


def _lock(path: Path, descriptor: int) -> None:
    """Lock the file, or raise InputError if another process has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is training in {path.parent}") from error

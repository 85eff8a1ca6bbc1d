"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dgmfast.errors import InputError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by `content` so that a reader, or the system after a power cut, sees the old file or the new one.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old file is intact and nothing else stays behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a kill leaves, the next write takes over
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a power cut; a system that cannot open folders, Windows, needs no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are written completely or not at all, and never through a symbolic link."""

from __future__ import annotations

import glob
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dgmfast.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None  # type: ignore[assignment]

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Context manager: turn an OSError, such as a full disk, into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by `content`, so that a reader, or the system after a power cut, sees either the old file or the new one.

    The content is first written to a new file with a random name in the same folder. If `path` is a symbolic link, the link
    itself is replaced.

    Raises:
        InputError: The disk is full, or the folder cannot be written. The old file is then intact, and no other file remains.
    """
    if not path.name:
        raise InputError(f"cannot write {str(path)!r}: expected the name of a file")
    with disk_errors(path):
        _remove_left_behind(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, NEW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)  # a process that gets the lock knows that the writer has ended
                file.write(content)
                file.flush()
                os.fsync(descriptor)
                if fcntl is not None:
                    os.replace(temporary, path)  # while the lock is held
            if fcntl is None:
                os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _remove_left_behind(path: Path) -> None:
    """Remove the temporary files of writers that were killed. Files of running writers are locked."""
    if fcntl is None:
        return
    for name in glob.glob(f".{glob.escape(path.name)}.*.tmp", root_dir=path.parent):
        with suppress(OSError):
            descriptor = os.open(path.parent / name, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(descriptor)
                # An empty new file may belong to a writer that has no lock yet.
                if status.st_size or status.st_mtime < time.time() - 60.0:
                    os.unlink(path.parent / name)
            finally:
                os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create the folder `path` of a run unless it exists.

    Raises:
        InputError: The folder cannot be created, or `path` is a symbolic link.
    """
    if path.is_symlink():
        raise InputError(f"cannot write into {path}: it is a symbolic link; remove it, or put a folder in its place")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Context manager: keep out other processes that are `doing` the same with the folder.

    Raises:
        InputError: Another process has the lock.
    """
    if fcntl is None:
        yield
        return
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is {doing} {folder}: wait until it is done") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """json.loads that raises only ValueError, also for lists that are nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut. Systems that cannot open folders, such as Windows, need no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

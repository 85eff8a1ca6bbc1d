"""Fetching MNIST over HTTP: resumed where possible, checked by content, in place only when whole."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from dgmfast.data.idx import read_idx
from dgmfast.data.mnist import FOLDER, MD5, mnist_file
from dgmfast.errors import InputError
from dgmfast.files import sync_folder

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 30.0  # seconds without a byte
TRIES = 3  # per mirror and file; each continues where the one before was cut
CHUNK = 1 << 16
MOST_SECONDS = 3600.0  # of one transfer: a server may send a byte now and then
MOST_BYTES = 1 << 26  # of a file of MNIST, whose largest has 10 MB; inflated, 47 MB


class _MirrorFailure(Exception):
    """This mirror did not deliver the file."""


class _Interrupted(_MirrorFailure):
    """The transfer began and was cut: worth another try."""


def download_mnist(data_dir: str | os.PathLike[str], mirrors: Sequence[str] = MIRRORS, progress: bool = True) -> Path:
    """Fetch the four MNIST files into `data_dir/mnist`, skip those already there and sound, and return that folder.

    A cut transfer leaves a .part file, which the next call continues.
    Raises InputError when no mirror delivers a file, with each mirror's reason, or when the folder cannot be written.
    """
    if isinstance(mirrors, str) or not mirrors or any(not mirror.startswith(("http://", "https://")) for mirror in mirrors):
        raise InputError(f"download_mnist: mirrors must be a list of http:// or https:// addresses; got {mirrors!r}")
    folder = Path(data_dir) / FOLDER
    ordered = list(mirrors)
    try:
        for name, md5 in MD5.items():
            if _already_there(data_dir, name, md5):
                continue
            good = _download_file(folder, f"{name}.gz", md5, ordered, progress)
            ordered.remove(good)  # asked first from now on: a dead mirror costs its timeout only once
            ordered.insert(0, good)
    except OSError as error:
        raise InputError(f"download_mnist: data_dir must be writable; got {error}") from error
    return folder


def _already_there(data_dir: str | os.PathLike[str], name: str, md5: str) -> bool:
    try:
        read_idx(mnist_file(data_dir, name), md5)
    except InputError:
        return False
    return True


def _download_file(folder: Path, name: str, md5: str, mirrors: Sequence[str], progress: bool) -> str:
    """Put one file in place and return the mirror that had it."""
    part = folder / f"{name}.part"
    reasons = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{name}"
        try:
            _fetch(url, part, md5, progress)
        except _MirrorFailure as failure:
            reasons.append(f"{url}: {failure}")
            continue
        os.replace(part, folder / name)
        sync_folder(folder)
        return mirror
    raise InputError(f"download_mnist: expected {name} from one of {len(mirrors)} mirrors; got {'; '.join(reasons)}")


def _fetch(url: str, part: Path, md5: str, progress: bool) -> None:
    """Leave the whole, checked file in `part`; raise _MirrorFailure when this address does not give it."""
    failure = _MirrorFailure()
    for _ in range(TRIES):
        try:
            resumed = _receive(url, part, progress)
        except _Interrupted as interruption:
            failure = interruption
            continue
        try:
            read_idx(part, md5)
            return
        except InputError as error:
            part.unlink()
            failure = _MirrorFailure(str(error))
            if not resumed:  # else the older bytes may be at fault: mirrors compress differently
                break
    raise failure


def _receive(url: str, part: Path, progress: bool) -> bool:
    """Write the answer of `url` to `part`, after what is there; True when older bytes were kept."""
    offset = part.stat().st_size if part.exists() else 0
    response, offset = _open(url, offset)
    if response is None:
        return True
    part.parent.mkdir(parents=True, exist_ok=True)
    length = response.headers.get("Content-Length", "")
    left = int(length) if length.isascii() and length.isdecimal() and len(length) < 18 else None
    if offset + (left or 0) > MOST_BYTES or (left is None and length):
        raise _MirrorFailure(f"expected at most {MOST_BYTES} bytes; the server announces {length:.30}")
    total = None if left is None else offset + left
    size = offset
    with response, part.open("ab" if offset else "wb") as file, _bar(progress, part.stem, offset, total) as bar:
        for chunk in _chunks(response, left):
            if size + len(chunk) > MOST_BYTES:
                raise _MirrorFailure(f"expected at most {MOST_BYTES} bytes; the server sends more")
            file.write(chunk)
            size += len(chunk)
            if bar is not None:
                bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and size < total:
        raise _Interrupted(f"connection closed after {size} of {total} bytes")
    return offset > 0


def _open(url: str, offset: int) -> tuple[http.client.HTTPResponse | None, int]:
    """The open answer and the offset of its first byte; (None, offset) when the server has no more than `offset` bytes."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            complete = error.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{offset}"
            return (None, offset) if complete else _open(url, 0)
        raise _MirrorFailure(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorFailure(_reason(error)) from error
    # A partial answer that starts elsewhere fails the checksum, like any other wrong content.
    return response, offset if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0


def _chunks(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """The `left` bytes of an answer, or all; only a failure of the network, not of the disk, becomes _Interrupted."""
    end = time.monotonic() + MOST_SECONDS
    while left is None or left > 0:
        if time.monotonic() > end:
            raise _Interrupted(f"no end after {MOST_SECONDS:.0f} seconds")
        try:
            chunk = response.read1(CHUNK)  # read would lose what came before a timeout
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error)) from error
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)


def _bar(progress: bool, name: str, offset: int, total: int | None) -> AbstractContextManager[Any]:
    if not progress:
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:  # the bar is a courtesy
        return nullcontext()
    return tqdm(desc=name, initial=offset, total=total, unit="B", unit_scale=True)  # type: ignore[no-any-return]

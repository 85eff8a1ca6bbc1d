"""Downloads MNIST over HTTP. Transfers are resumed where possible, and a file is put in place only if its content is complete."""

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
TRIES = 3  # per mirror and file; each try continues where the last one was cut
CHUNK = 1 << 16
MOST_SECONDS = 3600.0  # limit for one transfer, because a server could send a byte now and then forever
MOST_BYTES = 1 << 26  # limit for one file; the largest of MNIST has 10 MB, or 47 MB decompressed


class _MirrorFailure(Exception):
    """The mirror did not deliver the file."""


class _Interrupted(_MirrorFailure):
    """The transfer began and was cut; another try may succeed."""


def download_mnist(data_dir: str | os.PathLike[str], mirrors: Sequence[str] = MIRRORS, progress: bool = True) -> Path:
    """Download the four MNIST files into `data_dir/mnist`, and return that folder. Intact files that are there are skipped.

    An interrupted transfer leaves a .part file, which the next call continues.

    Args:
        data_dir: The folder of the data sets.
        mirrors: Addresses of folders that hold the files, in the order in which they are tried.
        progress: If true, show a progress bar.

    Raises:
        InputError: No mirror delivers a file (the message gives each mirror's reason), or the folder cannot be written.
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
            ordered.remove(good)  # tried first from now on, so that a dead mirror costs its timeout only once
            ordered.insert(0, good)
    except OSError as error:
        raise InputError(f"download_mnist: data_dir must be writable; got {error}") from error
    return folder


def _already_there(data_dir: str | os.PathLike[str], name: str, md5: str) -> bool:
    """True if the file is there and intact."""
    try:
        read_idx(mnist_file(data_dir, name), md5)
    except InputError:
        return False
    return True


def _download_file(folder: Path, name: str, md5: str, mirrors: Sequence[str], progress: bool) -> str:
    """Download one file, put it in place, and return the mirror that delivered it."""
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
    """Leave the complete, checked file in `part`. Raises _MirrorFailure if this address does not deliver it."""
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
            if not resumed:  # otherwise older bytes may be wrong: mirrors compress differently
                break
    raise failure


def _receive(url: str, part: Path, progress: bool) -> bool:
    """Append the answer of `url` to `part`. Returns true if the bytes that were there have been kept."""
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
    """The open answer and the offset of its first byte; (None, offset) if the server has no more than `offset` bytes."""
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
    """Yield the `left` bytes of an answer, or all of them. Only failures of the network, not of the disk, become _Interrupted."""
    end = time.monotonic() + MOST_SECONDS
    while left is None or left > 0:
        if time.monotonic() > end:
            raise _Interrupted(f"no end after {MOST_SECONDS:.0f} seconds")
        try:
            chunk = response.read1(CHUNK)  # read would lose the bytes before a timeout
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error)) from error
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def _reason(error: Exception) -> str:
    """The cause of a network error as text."""
    cause = getattr(error, "reason", error)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)


def _bar(progress: bool, name: str, offset: int, total: int | None) -> AbstractContextManager[Any]:
    """A progress bar, or a context manager that does nothing if there is no bar."""
    if not progress:
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:  # the bar is optional
        return nullcontext()
    return tqdm(desc=name, initial=offset, total=total, unit="B", unit_scale=True)  # type: ignore[no-any-return]

"""Finding and opening data files. Every failure is an InputError that names the file."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmfast.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
MOST_INFLATED = 1 << 32  # limit for the bytes of a decompressed file; the largest data set has 0.9 GB


def default_dir() -> Path | None:
    """The folder in the environment variable DGMFAST_DATA_DIR, or None if it is not set."""
    value = os.environ.get("DGMFAST_DATA_DIR")
    return Path(value) if value else None


def locate(
    dataset: str, data_dir: str | os.PathLike[str] | None, folders: str | tuple[str, ...], *names: str, hint: str = ""
) -> Path:
    """The path of the first of `names` that exists in one of `folders` in `data_dir`, or in `data_dir` itself.

    Raises:
        InputError: There is no data folder, or none of the files is in it.
    """
    root = default_dir() if data_dir is None else Path(data_dir)
    if root is None:
        raise InputError(f"load({dataset!r}): no data folder given; pass data_dir (--data-dir) or set DGMFAST_DATA_DIR{hint}")
    if not root.is_dir():
        raise InputError(f"load({dataset!r}): data_dir must be an existing folder; got {root}{hint}")
    folders = (folders,) if isinstance(folders, str) else folders
    for place in (*(root / folder for folder in folders), root):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise InputError(f"load({dataset!r}): expected {' or '.join(names)} in {root / folders[0]} or {root}; found none{hint}")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: The file is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable file; got {error.strerror or error}") from error


def read_unzipped(path: Path, most: int = MOST_INFLATED) -> bytes:
    """The bytes of a file, decompressed if it is gzip.

    Raises:
        InputError: The file is missing, unreadable or damaged gzip, or has more than `most` bytes when decompressed.
    """
    raw = read_bytes(path)
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise InputError(f"{path}: expected at most {most} bytes in the gzip file; it holds more")
        return content
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: expected a whole gzip file; got {len(raw)} bytes that do not decompress ({error})") from error


def read_mat(dataset: str, path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The arrays `keys` of a MATLAB file.

    Raises:
        InputError: scipy is missing, the file is damaged, or a key is not in it.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(f"load({dataset!r}): reading {path} needs scipy; got {error}") from error
    try:
        mat: dict[str, np.ndarray] = loadmat(path, variable_names=keys)
    except Exception as error:  # a damaged .mat makes scipy raise almost anything
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: expected a whole MATLAB file (version 7 or older); got {type(error).__name__}: {reason}"
        ) from error
    missing = [key for key in keys if key not in mat]
    if missing:
        raise InputError(f"{path}: expected the arrays {', '.join(keys)}; {', '.join(missing)} not found")
    return mat


def read_npz(path: Path, *keys: str) -> list[np.ndarray]:
    """The arrays `keys` of an .npz file.

    Raises:
        InputError: The file is damaged, or a key is not in it.
    """
    try:
        # Given a path, numpy would not close the file of a damaged archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in keys if key in archive}
    except Exception as error:  # a damaged archive makes numpy and zipfile raise almost anything
        raise InputError(f"{path}: expected a whole .npz archive; got {type(error).__name__}: {error}") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise InputError(f"{path}: expected the arrays {', '.join(keys)}; {', '.join(missing)} not found")
    return list(arrays.values())


def grey_rows(images: np.ndarray) -> Tensor:
    """uint8 images [N, ...] with levels 0-255 -> float32 [N, D] in [0, 1]."""
    return torch.from_numpy(np.divide(images.reshape(len(images), -1), 255, dtype=np.float32))


def label_rows(labels: np.ndarray) -> Tensor:
    """Integer labels [N] -> int64 [N]."""
    return torch.from_numpy(labels.astype(np.int64))

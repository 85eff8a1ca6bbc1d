"""The idx format of MNIST.

A file consists of two zero bytes, a type code, the number of dimensions, the big-endian sizes, and the elements in row-major
order.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from pathlib import Path

import numpy as np

from dgmfast.data.files import read_unzipped
from dgmfast.errors import InputError

UNSIGNED_BYTE = 0x08
MAX_DIMENSIONS = 32  # the limit of numpy before version 2
MOST_BYTES = 1 << 28  # limit for a decompressed idx file; the largest of MNIST has 47 MB


def read_idx(path: str | os.PathLike[str], md5: str | None = None) -> np.ndarray:
    """Read an idx file of unsigned bytes, plain or gzipped, into a read-only uint8 array with the shape in its header.

    Raises:
        InputError: The file is missing, too short, too long, or not idx, or its uncompressed bytes do not have the given md5.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    path = Path(path)
    raw = read_unzipped(path, MOST_BYTES)
    shape = _shape(path, raw)
    header = 4 + 4 * len(shape)
    expected = header + math.prod(shape)
    if len(raw) != expected:
        raise InputError(f"{path}: expected {expected} bytes for shape {list(shape)} in the idx header; got {len(raw)}")
    if md5 is not None:
        digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if digest != md5:
            raise InputError(f"{path}: expected md5 {md5} of the uncompressed bytes; got {digest}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _shape(path: Path, raw: bytes) -> tuple[int, ...]:
    """The shape in the header of an idx file."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != UNSIGNED_BYTE or not 1 <= raw[3] <= MAX_DIMENSIONS:
        got = raw[:4].hex(" ") or "an empty file"
        raise InputError(
            f"{path}: expected an idx file of unsigned bytes (first bytes 00 00 08 and the number of dimensions); got {got}"
        )
    dimensions = raw[3]
    if len(raw) < 4 + 4 * dimensions:
        raise InputError(f"{path}: expected {4 + 4 * dimensions} bytes of idx header; got {len(raw)}")
    shape: tuple[int, ...] = struct.unpack_from(f">{dimensions}I", raw, 4)
    if 0 in shape:
        raise InputError(f"{path}: expected positive sizes in the idx header; got {list(shape)}")
    return shape

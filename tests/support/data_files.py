"""Small data files in the public formats, and the checks that every reader must pass."""

import gzip
import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dgmfast import data
from dgmfast.data import mnist
from dgmfast.errors import InputError


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@contextmanager
def raises(*parts: object) -> Iterator[None]:
    """Asserts that the block raises an InputError of one sentence that contains every part."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if str(part) not in message] == [], message


def write_mnist(folder: Path, arrays: Sequence[np.ndarray], monkeypatch: pytest.MonkeyPatch, zipped: bool = False) -> None:
    """Writes the four files of MNIST with the given arrays, and makes their checksums the expected ones."""
    folder.mkdir(exist_ok=True)
    for name, array in zip(mnist.MD5, arrays, strict=True):
        raw = idx_bytes(array)
        monkeypatch.setitem(mnist.MD5, name, hashlib.md5(raw).hexdigest())
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)


def check(split: data.Split, rows: int, pixels: int, binary: bool, classes: int | None) -> None:
    """Asserts the shape, dtype and range of grey or binary images, and that every class occurs among the labels."""
    assert split.x.shape == (rows, pixels) and split.x.dtype == torch.float32 and split.x.is_contiguous()
    assert split.x.min() == 0 and split.x.max() == 1
    if binary:
        assert ((split.x == 0) | (split.x == 1)).all()
    if classes is None:
        assert split.y is None
    else:
        assert split.y.shape == (rows,) and split.y.dtype == torch.int64
        assert split.y.unique().tolist() == list(range(classes))

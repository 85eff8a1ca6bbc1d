"""The exception for errors that a user can fix.

Its message is one sentence. The command line prints it and exits with 2.
"""

from __future__ import annotations

from typing import Any

import torch

# How to install the packages that only the command line needs.
INSTALL = "install it with `make install` in dgmfast's source tree, or `pip install --no-build-isolation '.[train]'` there"


class InputError(ValueError):
    """Bad input. The message names the argument or file, what was expected, and what was given."""


class ToldElsewhere(InputError):
    """The InputError of another process, which reports it."""


def out_of_memory(error: BaseException) -> bool:
    """True if the error means that memory ran out.

    torch has a class for this error on CUDA only. The messages of its CPU allocator depend on the system.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def check_count(caller: str, name: str, value: Any, least: int = 1, most: int = 2**32 - 1) -> None:
    """Raise InputError unless `value` is an int from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool):
        got = repr(value) if isinstance(value, (bool, float, str)) else type(value).__name__
        raise InputError(f"{caller}: {name} must be a whole number; got {got}")
    if not least <= value <= most:
        expected = f"at least {least}" if value < least else f"at most {most}"
        raise InputError(f"{caller}: {name} must be {expected}; got {value}")

"""The one exception for input a user can mend: a message of one sentence, which the command line prints and exits with 2."""

import torch


class InputError(ValueError):
    """Bad input: names the argument or file, what was expected, and what came."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for it on CUDA only; its CPU allocator words it by the system."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )

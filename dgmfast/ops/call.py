"""What every op's entry shares: eager calls go to the extension's functions, traced ones through torch.ops."""

from __future__ import annotations

import torch
from torch import Tensor

is_compiling = torch.compiler.is_compiling


def not_a_tensor(op: str, error: TypeError, **arguments: object) -> TypeError:
    """The TypeError of a call in one sentence: which argument is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            return TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    return error

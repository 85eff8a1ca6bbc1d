"""Helpers of the ops' Python entries. Eager calls go to the extension's functions, traced ones go through torch.ops."""

from __future__ import annotations

import torch
from torch import Tensor

is_compiling = torch.compiler.is_compiling


def not_a_tensor(op: str, error: TypeError, **arguments: object) -> TypeError:
    """Return a TypeError that names the first argument that is not a tensor, or `error` itself if all of them are tensors."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            return TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    return error

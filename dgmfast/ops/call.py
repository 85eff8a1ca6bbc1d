"""What every op's entry shares: eager calls go to the extension's functions, traced ones through torch.ops."""

from __future__ import annotations

import torch
from torch import Tensor

is_compiling = torch.compiler.is_compiling


def seed_or_drawn(
    op: str, seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device | None
) -> int | Tensor:
    """`seed`; where it is None, a 0-dim int64 tensor drawn from `generator`, or from torch's own generator of the device.

    Raises:
        ValueError: both a seed and a generator. TypeError: a generator that is none.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator; got {type(generator).__name__}")
    if seed is not None:
        if generator is not None:
            raise ValueError(f"{op}: seed or generator must be None; got both")
        return seed
    place = device if generator is None else generator.device
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=place, generator=generator).to(device)


def not_a_tensor(op: str, error: TypeError, **arguments: object) -> TypeError:
    """The TypeError of a call in one sentence: which argument is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            return TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    return error

"""The seed of a call that draws, and the seeds of all random choices of a run."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


def derive_seed(seed: int, *path: int | str) -> int:
    """A seed in [0, 2^63) for the choice at `path`, such as ("noise", epoch, step).

    It is the BLAKE2b hash of the JSON list of the seed and the path. Different paths give independent seeds, which are the same
    on every machine. torch's CPU generator reads only the low 32 bits. Two of n epochs of a run may therefore share a shuffle,
    with probability n²/2^33.
    """
    text = json.dumps([seed, *path]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_or_drawn(
    op: str, seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device | None
) -> int | Tensor:
    """`seed`, or a seed drawn from `generator` if it is None.

    The drawn seed is a 0-dimensional int64 tensor. Without a generator, it comes from torch's own generator of the device.

    Raises:
        ValueError: Both a seed and a generator are given.
        TypeError: The generator is not a torch.Generator.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator; got {type(generator).__name__}")
    if seed is not None:
        if generator is not None:
            raise ValueError(f"{op}: seed or generator must be None; got both")
        return seed
    place = device if generator is None else generator.device
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=place, generator=generator).to(device)

"""Seeds of the random choices of a run."""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, *path: int | str) -> int:
    """A seed in [0, 2^63) for the choice at `path`, such as ("noise", epoch, step).

    BLAKE2b of the JSON text of (seed, *path): different paths give independent seeds, on every machine the same ones. Torch's CPU
    generator reads only the low 32 bits, so of the epochs of one run two may share a shuffle, with probability n²/2^33.
    """
    text = json.dumps([seed, *path]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

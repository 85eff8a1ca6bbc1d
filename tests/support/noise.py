"""The standard normals of a key."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import ops


def noise(rows: int, samples: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float64, **key: object) -> Tensor:
    """Returns the standard normals of a key, as draws of N(0, I)."""
    zero = torch.zeros(rows, dim, device=device, dtype=dtype)
    return ops.gaussian_sample(zero, zero, samples, **{"seed": 0, **key})[0]

"""Full images from rows that hold only some of their pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgmfast.errors import InputError


def full_images(dataset_pixels: Tensor | None, full_shape: tuple[int, int, int], x: Tensor) -> Tensor:
    """Put rows back into full images, with zeros for missing pixels: x [..., D] -> [..., C, H, W].

    Args:
        dataset_pixels: [D] int64, as in Dataset.pixels, or None if x holds every pixel.
        full_shape: (C, H, W).
        x: [..., D].

    Raises:
        InputError: x does not have D columns, or a pixel lies outside the image.
    """
    size = math.prod(full_shape)
    width = size if dataset_pixels is None else len(dataset_pixels)
    if x.ndim < 1 or x.shape[-1] != width:
        raise InputError(f"full_images: x must be rows [..., {width}]; got {list(x.shape)}")
    if dataset_pixels is None:
        return x.reshape(*x.shape[:-1], *full_shape)
    if width and not 0 <= int(dataset_pixels.min()) <= int(dataset_pixels.max()) < size:
        raise InputError(
            f"full_images: dataset_pixels must lie in 0..{size - 1} for images {list(full_shape)}; "
            f"got {int(dataset_pixels.min())}..{int(dataset_pixels.max())}"
        )
    full = torch.zeros(*x.shape[:-1], size, dtype=x.dtype, device=x.device)
    full[..., dataset_pixels.to(x.device)] = x
    return full.view(*x.shape[:-1], *full_shape)

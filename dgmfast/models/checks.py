"""Checks of settings that several models share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from dgmfast.errors import InputError


def check_sizes(x_dim: int, latent: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    """Raise InputError unless there is one MLP of positive widths per latent layer."""
    try:
        sizes = [x_dim, *latent, *(width for widths in hidden for width in widths)]
    except TypeError as error:
        raise InputError(f"latent must be a list of sizes and hidden a list of such lists; got {latent!r}, {hidden!r}") from error
    if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise InputError(f"x_dim, latent and hidden must be positive whole numbers; got {x_dim!r}, {latent!r}, {hidden!r}")
    if not latent or len(hidden) != len(latent):
        raise InputError(f"hidden must give one MLP per latent layer, and there must be one layer; got {latent!r}, {hidden!r}")


def check_flags(**flags: object) -> None:
    """Raise InputError unless every argument is a bool."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false; got {value!r}")


def check_widths(**sizes: object) -> None:
    """Raise InputError unless every argument is a positive whole number, or a non-empty sequence of them."""
    for name, value in sizes.items():
        widths = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not widths or not all(isinstance(width, int) and width >= 1 for width in widths):
            raise InputError(f"{name} must be a positive whole number, or a list of some; got {value!r}")

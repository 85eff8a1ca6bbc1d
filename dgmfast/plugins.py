"""Modules outside the package that add models, output distributions or recipes."""

from __future__ import annotations

import importlib
from importlib import metadata

from dgmfast.errors import InputError

GROUP = "dgmfast.plugins"  # the group of entry points under which an installed package names its modules
_loaded = False


def load_plugins() -> bool:
    """Import the modules that installed packages name as entry points of `GROUP`. Return true if this was not done before.

    It is called when a name is unknown, so that a plugin costs nothing while its names are not used.

    Raises:
        InputError: A module cannot be imported.
    """
    global _loaded
    if _loaded:
        return False
    _loaded = True
    for entry in metadata.entry_points(group=GROUP):
        import_module(entry.module)
    return True


def import_module(name: str) -> None:
    """Import the module `name`, which adds models, output distributions or recipes.

    Raises:
        InputError: It cannot be imported.
    """
    try:
        importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        reason = str(error).split("\n")[0]
        raise InputError(f"cannot import {name}: {type(error).__name__}: {reason}") from error

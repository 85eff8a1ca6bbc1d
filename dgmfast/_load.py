"""Loads the extension dgmfast._C. If that fails, the error says in one sentence what is wrong and which command fixes it."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType

_BUILD = "pip install --no-build-isolation ."


def load() -> ModuleType:
    """Import dgmfast._C. On the command line, an error is printed in one line and the process exits with code 2.

    Raises:
        ImportError: torch is missing; or the extension is not built, was built for another torch, or is shadowed by a source
            tree.
    """
    try:
        return _load()
    except ImportError as error:
        if not _is_command():
            raise
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None


def _is_command() -> bool:
    """True if this process is the command `dgmfast` or `python -m dgmfast`."""
    command = getattr(sys, "orig_argv", [])
    return Path(sys.argv[0] if sys.argv else "").stem == "dgmfast" or command[1:3] == ["-m", "dgmfast"]


def _load() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "dgmfast needs PyTorch, which is not installed: `pip install torch`, then build dgmfast against it"
        ) from error
    try:
        built_for = importlib.import_module("dgmfast._build_info").TORCH_VERSION
    except ImportError as error:
        raise ImportError(_not_built()) from error
    if built_for != torch.__version__:
        raise ImportError(
            f"dgmfast was built for torch {built_for}, but torch {torch.__version__} is installed: "
            f"rebuild with `{_BUILD}` in dgmfast's folder, or install torch=={built_for}"
        )
    try:
        return importlib.import_module("dgmfast._C")
    except ImportError as error:
        if str(error).startswith("DGMFAST_CPU"):  # an error of the extension itself
            raise
        raise ImportError(f"dgmfast._C cannot be loaded ({error}): rebuild with `{_BUILD}` in dgmfast's folder") from error


def _not_built() -> str:
    """The message for an extension that is not built, or that is shadowed by a source tree."""
    here = Path(__file__).resolve().parent
    try:
        files = importlib.metadata.files("dgmfast") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "_build_info.py":
            installed = Path(str(file.locate())).resolve().parent
            if installed != here:
                return (
                    f"the source tree {here.parent} shadows the installed dgmfast in {installed.parent}: "
                    "run Python from another folder, or install with `pip install --no-build-isolation -e .`"
                )
    return f"dgmfast's extension is not built: `make install`, or `{_BUILD}` in dgmfast's folder"

"""Tests that the package is marked as typed, and that the script whose types `make lint` checks runs."""

import importlib.resources
import runpy
from pathlib import Path


def test_the_package_is_marked_as_typed() -> None:
    assert (importlib.resources.files("dgmfast") / "py.typed").is_file()


def test_the_typed_script_runs() -> None:
    runpy.run_path(str(Path(__file__).with_name("typed_script.py")))

"""Tests of importing dgmfast with something missing or wrong: one error in one sentence must say what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from support.op_cases import ISAS

import dgmfast
from dgmfast import _C

SOURCES = Path(dgmfast.__file__).resolve().parent

# Imports dgmfast and prints the type and message of the error, as a user would see them in the last line.
IMPORT = """
import sys
sys.path[:0] = sys.argv[1:]
try:
    import dgmfast
except BaseException as error:
    print(type(error).__name__, error, sep="|", end="")
else:
    print("imported|" + dgmfast._C.isa() + "|" + dgmfast.__file__, end="")
"""


def run(code: str, *paths: Path, site: bool = False, **environment: str) -> list[str]:
    """Runs `code` in a fresh isolated interpreter with `paths` first on its path, and returns its output split at "|".

    Without `site` the interpreter sees only the standard library and `paths`: no torch, and no installed dgmfast.
    """
    command = [sys.executable, "-I", *([] if site else ["-S"]), "-c", code, *map(str, paths)]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("DGMFAST")} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=settings, cwd=os.sep)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("|")


def package(folder: Path, **files: str) -> Path:
    """Writes a package with the given modules, and returns the folder to put on the path."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(files.pop("init", ""))
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder.parent


@pytest.fixture
def torch_stub(tmp_path: Path) -> Path:
    """A folder with a torch that has only a version, which is all that dgmfast reads before it loads the extension."""
    return package(tmp_path / "stub" / "torch", init='__version__ = "9.9.9"\n')


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of the package as it is in the repository, without the extension and _build_info."""
    root = tmp_path / "tree"
    built = ("_build_info.py", "__pycache__", *(f"_C*{suffix}" for suffix in EXTENSION_SUFFIXES))
    shutil.copytree(SOURCES, root / "dgmfast", ignore=shutil.ignore_patterns(*built))
    return root


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert "Traceback" not in message
    assert 20 < len(message) < 400, message


def test_without_torch(source_tree: Path) -> None:
    kind, message = run(IMPORT, source_tree)
    assert kind == "ImportError"
    assert_one_sentence(message)
    assert "needs PyTorch" in message
    assert "pip install torch" in message


def test_not_built(source_tree: Path, torch_stub: Path) -> None:
    kind, message = run(IMPORT, source_tree, torch_stub)
    assert kind == "ImportError"
    assert_one_sentence(message)
    assert "not built" in message
    assert "pip install --no-build-isolation ." in message


def test_built_for_another_torch(source_tree: Path, torch_stub: Path) -> None:
    (source_tree / "dgmfast" / "_build_info.py").write_text('TORCH_VERSION = "2.11.0+cu128"\n')
    kind, message = run(IMPORT, source_tree, torch_stub)
    assert kind == "ImportError"
    assert_one_sentence(message)
    for part in (
        "built for torch 2.11.0+cu128",
        "torch 9.9.9 is installed",
        "pip install --no-build-isolation .",
        "torch==2.11.0",
    ):
        assert part in message


def test_damaged_extension(source_tree: Path, torch_stub: Path) -> None:
    (source_tree / "dgmfast" / "_build_info.py").write_text('TORCH_VERSION = "9.9.9"\n')
    (source_tree / "dgmfast" / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF and then nothing")
    kind, message = run(IMPORT, source_tree, torch_stub)
    assert kind == "ImportError"
    assert_one_sentence(message)
    assert "_C" in message
    assert "pip install --no-build-isolation ." in message


def test_missing_extension(source_tree: Path, torch_stub: Path) -> None:
    (source_tree / "dgmfast" / "_build_info.py").write_text('TORCH_VERSION = "9.9.9"\n')
    kind, message = run(IMPORT, source_tree, torch_stub)
    assert kind == "ImportError"
    assert_one_sentence(message)
    assert "pip install --no-build-isolation ." in message


def test_shadowed_by_a_source_tree(source_tree: Path, torch_stub: Path, tmp_path: Path) -> None:
    """If a source tree shadows an installed dgmfast, the message must name the folder of the latter and the way out."""
    site = package(tmp_path / "site" / "dgmfast", **{"_build_info.py": 'TORCH_VERSION = "9.9.9"\n'})
    info = site / "dgmfast-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dgmfast\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("dgmfast/__init__.py,,\ndgmfast/_build_info.py,,\n")
    kind, message = run(IMPORT, source_tree, torch_stub, site)
    assert kind == "ImportError"
    assert_one_sentence(message)
    for part in (f"{source_tree} shadows", f"installed dgmfast in {site}:", "run Python from another folder"):
        assert part in message


def test_the_installed_package_is_found_from_any_folder() -> None:
    kind, isa, file = run(IMPORT, site=True)
    assert (kind, isa) == ("imported", ISAS[-1])
    assert Path(file).name == "__init__.py"


@pytest.mark.parametrize("wanted", ISAS[:-1])
def test_instruction_set_by_environment(wanted: str) -> None:
    kind, isa, _ = run(IMPORT, site=True, DGMFAST_CPU=wanted)
    assert (kind, isa) == ("imported", wanted)


@pytest.mark.parametrize("wanted", ["nonsense", "AVX2", *({"avx2", "avx512"} - set(ISAS))])
def test_wrong_instruction_set_in_the_environment(wanted: str) -> None:
    """A wrong instruction set must be reported at import, in one sentence that names the variable but proposes no rebuild."""
    kind, message = run(IMPORT, site=True, DGMFAST_CPU=wanted)
    assert kind in ("ImportError", "ValueError")
    assert_one_sentence(message)
    assert "DGMFAST_CPU" in message
    assert wanted in message
    assert "rebuild" not in message


def test_traceback_ends_with_the_sentence(source_tree: Path) -> None:
    """The traceback of `import dgmfast` must end with the sentence."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import dgmfast"
    command = [sys.executable, "-I", "-S", "-c", code, str(source_tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: dgmfast needs PyTorch")


def test_versions_are_recorded() -> None:
    from dgmfast import _build_info

    assert torch.__version__ == _build_info.TORCH_VERSION
    assert _C.isa() in ISAS
    assert isinstance(_C.cuda_architectures, str)

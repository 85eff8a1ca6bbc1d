"""Tests that docs/architecture.md agrees with the tree and its imports, including type-only and lazy imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dgmfast"


def rooms(page: str) -> dict[str, str]:
    """Returns the rooms of a page's table, lowest first, with their descriptions."""
    table = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return dict(table)


ROOMS = rooms("docs/architecture.md")


def modules(package: Path) -> dict[str, Path]:
    """Returns all modules of a package by their dotted names."""
    folders = {package: "dgmfast", package.parent / "examples": "dgmfast.examples"}
    paths = {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)): path
        for folder, name in folders.items()
        for path in folder.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (module, name) for every import from dgmfast, wherever it is in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the whole name of a module"
            if node.module and node.module.split(".")[0] == "dgmfast":
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "dgmfast")


def target(module: str, name: str, known: dict[str, Path]) -> str:
    """Returns the module that an import reads."""
    return f"{module}.{name}" if f"{module}.{name}" in known else module


def faults(package: Path) -> list[str]:
    """Returns every import from a higher room, of something that a room does not list, or from no room."""
    known, order, found = modules(package), list(ROOMS), []
    for module, path in known.items():
        if module in ("dgmfast", "dgmfast.__main__"):
            continue
        room = module.split(".")[1]
        for source, name in imports(path):
            read = target(source, name, known)
            other = name if source == "dgmfast" and f"dgmfast.{name}" not in known else [*read.split("."), ""][1]
            if other in (room, "_C", "__version__") or (room == "examples" and read == "dgmfast"):
                continue
            if other not in order or order.index(other) >= order.index(room):
                found.append(f"{module} imports {source}.{name}: {room} may not import {other}")
            elif read.count(".") > 1 and other != "examples":  # examples has no list
                found.append(f"{module} imports {source}.{name}: only what {other}/__init__.py lists is for others")
    return found


def test_a_room_imports_only_rooms_above_it_in_the_table():
    assert not faults(PACKAGE)


def test_the_table_is_the_tree():
    """The rooms must be the packages and modules at the top level, and CONTRIBUTING must have the same list."""
    tree = {name.split(".")[1] for name in modules(PACKAGE) if "." in name} - {"__main__"}
    assert set(ROOMS) == tree
    assert rooms("CONTRIBUTING.md") == ROOMS
    assert not [name for name in tree if name.startswith("_") and name != "_load"]


def test_no_circle():
    known = modules(PACKAGE)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        if module.count(".") < 2 and module.split(".")[-1] in ("dgmfast", "__main__"):
            continue
        read = {target(source, name, known) for source, name in imports(path)}
        graph[module] = {other for other in read if other not in ("dgmfast", module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from dgmfast.train import fit", "nn may not import train"),
        ("if TYPE_CHECKING:\n    from dgmfast import models", "nn may not import models"),
        ("def f():\n    import dgmfast.plots", "nn may not import plots"),
        ("from dgmfast.ops.gaussian import gaussian_kl", "only what ops/__init__.py lists is for others"),
    ],
)
def test_a_planted_import_is_found(line, told, tmp_path):
    package = tmp_path / "dgmfast"
    for path in modules(PACKAGE).values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with (package / "nn" / "heads.py").open("a") as file:
        file.write(f"\n{line}\n")
    [fault] = faults(package)
    assert told in fault

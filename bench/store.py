"""Measurements on disk: `measurements.jsonl` has one JSON row per line, is replaced by group and is written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FILE = "measurements.jsonl"
# Rows that agree on these columns were measured together and are replaced together.
GROUP = ("case", "shape", "mode", "dtype", "threads", "malloc", "captured")
# The first columns of a line, for people who read the file.
LEADING = (*GROUP, "contender", "status", "median_s", "q20_s", "q80_s", "rounds")


def group_of(row: Row) -> tuple[str, ...]:
    """Returns the values of the group columns as a sortable key."""
    return tuple(str(row.get(name, "")) for name in GROUP)


def read(folder: Path) -> list[Row]:
    """Returns all rows of a machine, or none if there is no file yet."""
    path = folder / FILE
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []


def replace(folder: Path, rows: Iterable[Row]) -> None:
    """Replaces all earlier rows of the same groups by the given rows."""
    new = list(rows)
    groups = {group_of(row) for row in new}
    kept = [row for row in read(folder) if group_of(row) not in groups]
    ordered = sorted(kept + new, key=lambda row: (group_of(row), row.get("contender", "")))
    lines = [json.dumps({name: row[name] for name in LEADING if name in row} | row) for row in ordered]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, "\n".join(lines) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader sees either the old content or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise

"""`python -m bench report` renders the README's table, a plot per machine and the full tables from the measurements on disk."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import store
from bench.machine import ROOT
from bench.report import plot, tables
from bench.store import Row

CLASSES = "classes.png"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="folder of the machines' folders")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose marked part is rewritten")
    parser.add_argument("--no-readme", action="store_true", help="leave the README as it is")
    parser.add_argument("--out", type=Path, help="write the full tables to this file instead of standard output")


def main(options: argparse.Namespace) -> int:
    """Renders the report; returns 2 if there are no measurements or the README lacks the markers."""
    machines = read(options.results)
    if not machines:
        print(f"python -m bench report: no measurements in {options.results}; run `python -m bench` first", file=sys.stderr)
        return 2
    try:
        for name, rows in machines.items():
            plot.speedups(rows, options.results / name / "speedups.png")
            plot.classes(rows, options.results / name / CLASSES)
    except ImportError:
        print("python -m bench report: no plots are drawn, because matplotlib is not installed", file=sys.stderr)
    text = full_report(machines, options.results, options.out or Path("report.md"))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        store.write_atomically(options.out, text)
    else:
        print(text)
    if options.no_readme:
        return 0
    before = options.readme.read_text() if options.readme.is_file() else ""
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        print(f"python -m bench report: {options.readme} must have one {BEGIN} and, after it, one {END}", file=sys.stderr)
        return 2
    after = replace_marked(before, readme_part(machines))
    if after != before:
        store.write_atomically(options.readme, after)
    return 0


def read(results: Path) -> dict[str, list[Row]]:
    """Returns the rows of each machine by its name."""
    folders = sorted(path.parent for path in results.glob(f"*/{store.FILE}"))
    return {folder.name: rows for folder in folders if (rows := store.read(folder))}


def fullest(machines: Mapping[str, Sequence[Row]], device: str) -> str | None:
    """Returns the machine of a kind with the most work measured; among equals, the one measured last."""

    def measured(name: str) -> tuple[int, str]:
        rows = machines[name]
        return len({(r["case"], r["shape"], r["mode"]) for r in rows}), max(r["date"] for r in rows)

    return max((name for name, rows in machines.items() if rows[0]["device"] == device), key=measured, default=None)


def readme_part(machines: Mapping[str, Sequence[Row]]) -> str:
    """Returns a short table for the CPU and, if one was measured, for the GPU with the most measurements."""
    best = filter(None, (fullest(machines, "cpu"), fullest(machines, "cuda")))
    return "\n\n".join(tables.highlights(machines[name]) for name in best)


def _link(picture: Path, page: Path) -> str:
    """Returns the path of a picture relative to a page."""
    return Path(os.path.relpath(picture.resolve(), page.resolve().parent)).as_posix()


def replace_marked(text: str, part: str) -> str:
    """Returns the text with the part between the markers replaced."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{part}\n{END}{rest.split(END)[1]}"


def full_report(machines: Mapping[str, Sequence[Row]], results: Path, page: Path) -> str:
    """Returns all measurements of all machines as Markdown for the file `page`."""
    intro = (
        "# Benchmarks\n\nWritten by `python -m bench report --out docs/benchmarks.md` from `bench/results/`."
        " Median (20 – 80 % quantiles) of interleaved runs · how many times slower than ours in the same setting;"
        " error: largest relative distance from float64 (L_5000: nats)."
    )
    sections = []
    for name, rows in machines.items():
        picture = f"![Times slower than dgmfast, on {name}]({_link(results / name / 'speedups.png', page)})"
        sections.append(f"## {name}\n\n{tables.summary(rows)}\n\n{picture}\n{tables.full(rows)}")
        if any(row["case"] == "classes" for row in rows):
            sections.append(f"![A training step against the number of classes]({_link(results / name / CLASSES, page)})")
    return "\n\n".join([intro, *sections]) + "\n"

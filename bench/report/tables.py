"""Markdown tables: the ratios against their targets, and all measurements of a machine."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness import format_seconds
from bench.report.ratios import RIVALS, Work, headline, most_threads, works
from bench.store import Row

# Below this size, memory traffic does not bound an op.
MIN_BANDWIDTH_SIZE = 1000 * 784


def summary(rows: Sequence[Row]) -> str:
    """Returns the table of one machine: our time, and how many times slower each rival is, with targets."""
    threads = most_threads(rows)
    listed = headline(rows)
    lines = [_caption(rows, threads), "", "| Work | ours | × eager | × compile | besides |", "|---|--:|--:|--:|---|"]
    for work in listed:
        cells = [work.title, _ours(work)]
        cells += [_ratio(work, "eager"), _ratio(work, "compile"), "; ".join(_besides(work))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _notes(rows, listed, threads)
    return "\n".join(lines)


# The titles of the rows on the front page.
HIGHLIGHTS = (
    "`gaussian_kl` 10000×784, forward+backward",
    "`bernoulli_log_prob` 10000×784, forward+backward",
    "`label_linear` 100×784 to 500, 10 classes, forward+backward",
    "`L_5000` 784-200-200-50, 2 threads",
    "`steps` ADGM, sparse sum, 10 classes, training step",
    "`sampling` PixelCNN 28×28, batch 16, forward",
)


def highlights(rows: Sequence[Row]) -> str:
    """Returns the table of the front page: a few pieces of work, and how many times slower each rival is."""
    threads = most_threads(rows)
    by_title = {work.title: work for work in headline(rows)}
    lines = [_machine(rows, threads) + ": medians, in float32, and how many times longer the others take.", ""]
    lines += ["| work | dgmfast | eager PyTorch | torch.compile | others |", "|---|--:|--:|--:|---|"]
    for work in (by_title[title] for title in HIGHLIGHTS if title in by_title):
        eager, compiled, *others = (work.ratios[rival].value if rival in work.ratios else None for rival in RIVALS)
        named = [f"{rival} {_times(value)}" for rival, value in zip(RIVALS[2:], others, strict=True) if value is not None]
        lines.append(f"| {work.title} | {_ours(work)} | {_times(eager)} | {_times(compiled)} | {', '.join(named)} |")
    return "\n".join(lines)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}×" if value < 1000 else f"{value:.0f}×"


def _ours(work: Work) -> str:
    return format_seconds(work.ours_s) + (" per image" if work.case in ("L_5000", "sampling") else "")


def _machine(rows: Sequence[Row], threads: int) -> str:
    last = max(rows, key=lambda row: row["date"])
    machine = f"{last['gpu']}" if "gpu" in last else f"{last['cpu']}, {last['cores']} cores, {threads} threads, {last['isa']}"
    return f"{machine}, torch {last['torch']}"


def _caption(rows: Sequence[Row], threads: int) -> str:
    commits = sorted({row["commit"] + ("+" if row["dirty"] else "") for row in rows})
    return (
        f"{_machine(rows, threads)}, float32, medians, commit {', '.join(commits)}. A ratio says how many times slower the"
        " rival is; eager is the fastest of its forms in `bench/rivals/ops.py`; the target is in brackets; of two malloc settings"
        " the smaller ratio."
    )


def _ratio(work: Work, rival: str) -> str:
    if rival not in work.ratios:
        return "–"
    value = work.ratios[rival].value
    target = work.target.ratios.get(rival) if work.target else None
    shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return shown if target is None else f"{shown} {_mark(value >= target)} ({target:.3g})"


def _mark(reached: bool) -> str:
    return "✓" if reached else "✗"


def _besides(work: Work) -> list[str]:
    parts = []
    for rival in RIVALS[2:]:
        if rival in work.ratios:
            parts.append(f"{rival} {_ratio(work, rival)}")
    wanted = work.target.bandwidth if work.target else None
    if work.bandwidth is not None and (wanted or _elements(work) >= MIN_BANDWIDTH_SIZE):
        reached = "" if wanted is None else f" {_mark(work.bandwidth >= wanted)} ({100 * wanted:.0f} %)"
        parts.append(f"{100 * work.bandwidth:.0f} % of the bandwidth{reached}")
    if work.floor is not None:
        wanted = work.target.floor if work.target else None
        reached = "" if wanted is None else f" {_mark(work.floor <= wanted)} (at most {wanted:g})"
        parts.append(f"{work.floor:.2f} times its multiplications{reached}")
    return parts


def _elements(work: Work) -> int:
    size = 1
    for number in work.shape.split(" ")[0].split("x"):
        size *= int(number) if number.isdigit() else 1
    return size if work.case not in ("gaussian_sample", "steps", "classes", "L_5000") else 0


def _notes(rows: Sequence[Row], listed: Sequence[Work], threads: int) -> list[str]:
    notes = []
    for case, contender in dict.fromkeys((row["case"], row["contender"]) for row in rows if "grown_bytes" in row):
        measured = {row["shape"]: row for row in rows if (row["case"], row["contender"]) == (case, contender)}
        what = "L_K of 8 images" if case == "memory" else "a step on L_K of 20 images, chunks of 50"
        told = (_memory(measured[k]) for k in sorted(measured, key=lambda k: int(k.removeprefix("K="))))
        notes.append(f"Memory that {what} takes beyond the model's, {contender}: {', '.join(told)}.")
    ceilings = [row for row in rows if row["case"] == "floor" and row["threads"] == threads]
    if ceilings:
        values = ", ".join(f"{row['shape']} {row['rate'] / 1e9:.3g} G{row['unit']}" for row in ceilings)
        commits = ", ".join(sorted({row["commit"] for row in ceilings}))
        notes.append(f"Ceilings, measured at commit {commits}: {values}; shares of the bandwidth are of these.")
    refused = {f"{r['contender']} at {w.title} ({r['status']}: {_reason(r)})" for w in listed for r in w.refused}
    kept = sorted({row["note"] for row in rows if row["case"] == "steps" and row["contender"] == "ours" and row["note"]})
    if kept:
        notes.append(f"Training steps: 784-500-500, a = z = 100, 100 labelled and 100 unlabelled rows, Adam; sparse: {kept[0]}.")
    if refused:
        notes.append(f"Not timed: {'; '.join(sorted(refused))}.")
    absent = sorted({row["contender"] for row in rows if row["status"] == "not installed"})
    if absent:
        notes.append(f"Not installed: {', '.join(absent)}.")
    return [line for note in notes for line in ("", note)]


def _memory(row: Row) -> str:
    seconds = f" in {row['seconds']:.2g} s" if row.get("seconds") else ""
    return f"{row['shape']} {row['grown_bytes'] / 2**20:.0f} MB{seconds}"


def _reason(row: Row) -> str:
    return f"error {row['error']:.1e}" if row["status"] == "wrong" else row["note"]


def full(rows: Sequence[Row]) -> str:
    """Returns all measurements of a machine: medians (20–80 % quantiles), and the ratios to ours in the same setting."""
    settings = sorted({(row["threads"], row["malloc"]) for row in rows if "median_s" in row}, key=lambda s: (s[0], s[1]))
    heads = [f"{t} thread{'s' * (t > 1)}{'' if malloc == 'default' else ', tuned malloc'}" for t, malloc in settings]
    blocks: dict[str, list[str]] = {}
    for work in works(rows, most_threads(rows)):
        group = [row for row in rows if _same(row, work)]
        lines = [f"\n**{work.title}**\n", f"| | {' | '.join(heads)} | error |", f"|---|{'--:|' * len(heads)}--:|"]
        for contender in dict.fromkeys(row["contender"] for row in _ours_first(group)):
            mine = {(row["threads"], row["malloc"]): row for row in group if row["contender"] == contender}
            ours = {(r["threads"], r["malloc"]): r.get("median_s") for r in group if r["contender"] == "ours"}
            cells = [_cell(mine.get(setting), ours.get(setting)) for setting in settings]
            error = max((row["error"] for row in mine.values() if "error" in row), default=None)
            lines.append(f"| {contender} | {' | '.join(cells)} | {'' if error is None else f'{error:.0e}'} |")
        blocks.setdefault(work.case, []).extend(lines)
    return "\n".join(line for case, lines in blocks.items() for line in [f"\n### {case}", *lines])


def _same(row: Row, work: Work) -> bool:
    return all(row[name] == getattr(work, name) for name in ("case", "shape", "mode", "dtype", "captured"))


def _ours_first(group: Sequence[Row]) -> list[Row]:
    return sorted(group, key=lambda row: (row["contender"] != "ours", row["contender"]))


def _cell(row: Row | None, ours: float | None) -> str:
    if row is None:
        return ""
    if "median_s" not in row:
        return row["status"]
    spread = f"({format_seconds(row['q20_s'])} – {format_seconds(row['q80_s'])})"
    ratio = f" · {row['median_s'] / ours:.2f}×" if ours and row["contender"] != "ours" else ""
    return f"{format_seconds(row['median_s'])} {spread}{ratio}"

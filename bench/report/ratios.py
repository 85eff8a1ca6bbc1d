"""Ratios from the measurements: for each piece of work, how many times slower each rival is than ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.report.targets import Target, target_of
from bench.store import Row

CASES = (
    "gaussian_kl",
    "gaussian_log_prob",
    "bernoulli_log_prob",
    "linear_bernoulli_log_prob",
    "mlp_bernoulli_log_prob",
    "importance_bound",
    "gaussian_sample",
    "gaussian_merge",
    "importance_state",
    "marginalize_labels",
    "label_linear",
    "masked_conv2d",
    "steps",
    "classes",
    "L_5000",
    "image_steps",
    "sampling",
    "end_to_end",
)
RIVALS = (
    "eager",
    "compile",
    "torch.distributions",
    "repeated batch",
    "compiled repeated batch",
    "exact sum",
    "plain product",
    "pythae",
    "Pyro",
    "cached in PyTorch",
    "full pass per pixel",
)
_TIMES = re.compile(r"(?<=\d)x(?=\d)")
NOT_TIMED = ("wrong", "failed", "skipped")


@dataclass(frozen=True)
class Ratio:
    """How many times slower a rival is than ours, and which of its forms was the fastest."""

    value: float
    form: str


@dataclass
class Work:
    """One case, shape, mode and dtype at one number of threads."""

    case: str
    shape: str
    mode: str
    dtype: str
    captured: bool
    threads: int
    device: str
    ours_s: float
    bandwidth: float | None = None  # share of the measured ceiling
    floor: float | None = None  # our time divided by the time of the multiplications alone at the measured rate
    ratios: dict[str, Ratio] = field(default_factory=dict)
    refused: list[Row] = field(default_factory=list)  # contenders that were wrong, failed or were skipped

    @property
    def target(self) -> Target | None:
        return target_of(self.device, self.case, self.shape, self.mode, self.threads)

    @property
    def title(self) -> str:
        parts = [f"`{self.case}` {_TIMES.sub('×', self.shape)}"]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.case == "L_5000" else [self.mode]
        parts += [] if self.device == "cpu" else ["captured" if self.captured else "uncaptured"]
        return ", ".join(parts)


def rival_of(contender: str) -> str | None:
    """Returns the rival that a contender is a form of; None for ours."""
    head = contender.split(",")[0]
    return head if head in RIVALS else None


def headline(rows: Sequence[Row]) -> list[Work]:
    """Returns the work for the short tables: all cases at the largest thread count, and L_K also on one thread.

    Of `classes`, only the numbers of classes with a target are included.
    """
    most = most_threads(rows)
    listed = [work for work in works(rows, most) if work.case != "classes" or work.target]
    single = [work for work in works(rows, 1) if work.case == "L_5000" and work.device == "cpu"] if most > 1 else []
    return listed + single


def works(rows: Sequence[Row], threads: int) -> list[Work]:
    """Returns all measured work at one thread count, in the order of the table."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["case"] in CASES and row["threads"] == threads:
            key = (row["case"], row["dtype"], row["shape"], row["mode"], row["captured"])
            groups.setdefault(key, []).append(row)
    ceilings = {row["shape"]: row["rate"] for row in rows if row["case"] == "floor" and row["threads"] == threads}
    made = [_work(group, ceilings) for group in groups.values()]
    return sorted((work for work in made if work is not None), key=_order)


def _order(work: Work) -> tuple:
    size = 1
    for number in work.shape.split(" ")[0].split("x"):
        size *= int(number) if number.isdigit() else 1
    words = [word.zfill(9) if word.isdigit() else word for word in work.shape.split(" ")[1:]]
    return CASES.index(work.case), work.dtype, words, size, work.mode, work.captured


def _work(group: Sequence[Row], ceilings: Mapping[str, float]) -> Work | None:
    """Quotes the smaller ratio of the malloc settings, because page faults inflate the rivals' times."""
    ceiling = ceilings.get("read bandwidth") or ceilings.get("copy bandwidth")
    timed = [row for row in group if "median_s" in row]
    ours = {row["malloc"]: row["median_s"] for row in timed if row["contender"] == "ours"}
    if not ours:
        return None
    first = group[0]
    columns = {name: first[name] for name in ("case", "shape", "mode", "dtype", "captured", "threads", "device")}
    refused = [row for row in group if row["status"] in NOT_TIMED]
    work = Work(**columns, ours_s=ours.get("default", min(ours.values())), refused=refused)
    for rival in RIVALS:
        found = [_fastest(timed, rival, malloc, seconds) for malloc, seconds in ours.items()]
        if quoted := [ratio for ratio in found if ratio is not None]:
            work.ratios[rival] = min(quoted, key=lambda ratio: ratio.value)
    if ceiling is not None and first.get("bytes"):
        work.bandwidth = first["bytes"] / min(ours.values()) / ceiling
    if first.get("flops") and "sgemm" in ceilings:
        work.floor = work.ours_s / (first["flops"] / ceilings["sgemm"])
    return work


def _fastest(timed: Iterable[Row], rival: str, malloc: str, ours: float) -> Ratio | None:
    forms = [row for row in timed if row["malloc"] == malloc and rival_of(row["contender"]) == rival]
    if not forms:
        return None
    best = min(forms, key=lambda row: row["median_s"])
    return Ratio(best["median_s"] / ours, best["contender"])


def most_threads(rows: Sequence[Row]) -> int:
    """Returns the thread count of the targets, which is the largest measured."""
    return max((row["threads"] for row in rows if "median_s" in row), default=1)

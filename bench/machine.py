"""Describes the machine and the code that a measurement was taken with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

import dgmfast

ROOT = Path(__file__).resolve().parents[1]
# Files that a benchmark run writes; changes to them do not mark the measured code as dirty.
WRITTEN_BY_RUNS = ("bench/results", "README.md", "docs")

Description = dict[str, str | int | bool]


def cpu_model() -> str:
    """Returns the name of the processor as its maker gives it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slug(device: str) -> str:
    """Returns the folder name of a machine's results, such as amd-epyc-2core-avx512 or nvidia-h200."""
    if device != "cpu":
        return _slug(torch.cuda.get_device_name())
    model = re.sub(r"\(R\)|\(TM\)|\bCPU\b|@.*$|\bProcessor\b|\d+-Core", " ", cpu_model(), flags=re.I)
    return f"{_slug(model)}-{cores()}core-{dgmfast._C.isa()}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: str) -> Description:
    """Returns the columns that every row of a run shares."""
    commit = _git("rev-parse", "--short=12", "HEAD") or os.environ.get("DGMFAST_COMMIT", "unknown")
    changed = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN_BY_RUNS))
    facts: Description = {
        "device": device,
        "cpu": cpu_model(),
        "cores": cores(),
        "isa": dgmfast._C.isa(),
        "torch": torch.__version__,
        "commit": commit,
        "dirty": bool(changed) if changed is not None else os.environ.get("DGMFAST_DIRTY") == "1",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _git(*arguments: str) -> str | None:
    """Returns git's output for the source tree, or None without git or a repository."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()

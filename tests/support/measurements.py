"""Measurements in the form that `python -m bench` writes."""

from __future__ import annotations

from pathlib import Path

from bench import store

ROOT = Path(__file__).resolve().parents[2]


def row(contender: str, seconds: float | None, **columns: object) -> store.Row:
    """Returns one measurement as `python -m bench` writes it; without seconds, the contender was wrong."""
    shared = {"case": "importance_bound", "shape": "100x5000", "mode": "forward", "dtype": "float32", "threads": 2}
    shared |= {"malloc": "default", "captured": False, "contender": contender, "units": 1, "note": "", "error": 1e-7}
    machine = {"device": "cpu", "cpu": "a processor", "cores": 2, "isa": "avx2", "torch": "2.13.0", "commit": "0123456789ab"}
    shared |= machine | {"dirty": False, "date": "2026-01-01T00:00:00Z", "bytes": 2 * 10**6}
    timed = {"status": "wrong"} if seconds is None else {"status": "ok", "median_s": seconds, "q20_s": seconds, "q80_s": seconds}
    return shared | timed | columns

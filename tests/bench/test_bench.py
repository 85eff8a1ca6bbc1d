"""Tests of the benchmarks: a quick run measures, a wrong contender is not timed, and the reports show the measurements."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.measurements import ROOT, row

from bench import __main__ as command
from bench import harness, store
from bench.cases.op_cases import Context, OpCase, checker, contenders_of
from bench.cases.ops_table import BOUND
from bench.report import page as report
from bench.report.ratios import works

CPU = Context("cpu", 1, "default", harness.QUICK, compile=False, quick=True)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Measurements of one machine: eager is 3 times slower than ours (tuned malloc: 2.5 times), and compile is wrong."""
    rows = [row("ours", 1e-4), row("eager", 3e-4), row("eager, log_softmax", 4e-4), row("compile", None)]
    rows += [row("ours", 1e-4, malloc="tuned"), row("eager", 2.5e-4, malloc="tuned")]
    rows += [row("ours", 1e-2, case="L_5000", shape="784-200-200-50", threads=threads) for threads in (1, 2)]
    rows += [row("sum", None, case="floor", shape="read bandwidth", status="ok", rate=4e10, unit="B/s")]
    store.replace(tmp_path / "results" / "machine", rows)
    return tmp_path / "results"


def test_quick_run(tmp_path: Path) -> None:
    """A quick run must check and time ours and eager in both modes, and measuring again must replace the rows."""
    bench = [sys.executable, "-m", "bench", "--quick", "--cases", "importance_bound", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(bench, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    rows = store.read(folder)
    assert {(r["case"], r["mode"], r["captured"]) for r in rows} == {
        ("importance_bound", "forward", False),
        ("importance_bound", "forward+backward", False),
    }
    for one in rows:
        assert one["status"] == "ok" and one["error"] <= one["tolerance"], one
        assert 0 < one["q20_s"] <= one["median_s"] <= one["q80_s"] and one["rounds"] >= 3
        assert one["threads"] == 1 and one["commit"] and one["date"] and one["torch"] and one["cpu"]
    assert {"ours", "eager"} <= {r["contender"] for r in rows}
    store.replace(folder, [one | {"median_s": 1.0} for one in rows if one["mode"] == "forward"])
    again = store.read(folder)
    assert len(again) == len(rows)
    assert {r["median_s"] == 1.0 for r in again if r["mode"] == "forward"} == {True}


def test_a_wrong_contender_is_reported_and_not_timed() -> None:
    def wrong(inputs: harness.Inputs) -> harness.Outputs:
        return (call(inputs)[0] * (1 + 1e-3),)

    def nan(inputs: harness.Inputs) -> harness.Outputs:
        return (call(inputs)[0] * float("nan"),)

    def broken(inputs: harness.Inputs) -> harness.Outputs:
        raise RuntimeError("not today\nand more")

    case = OpCase(BOUND, (4, 50))
    ours = contenders_of(BOUND, False, CPU)[0]
    call = harness._callable(ours)
    rivals = [harness.Contender(f.__name__, f) for f in (wrong, nan, broken)] + [
        harness.Contender("absent", None, "no such library")
    ]
    settings = harness.Settings(seconds=0.0, min_rounds=3, max_rounds=3, sample_seconds=0.0)
    rows = harness.measure([ours, *rivals], case._inputs(CPU, False), checker(BOUND, False), settings)
    assert {r["contender"]: r["status"] for r in rows} == {
        "ours": "ok",
        "wrong": "wrong",
        "nan": "wrong",
        "broken": "failed",
        "absent": "not installed",
    }
    assert [r["contender"] for r in rows if "median_s" in r] == ["ours"]
    assert rows[1]["error"] == pytest.approx(1e-3, rel=0.01)
    assert rows[3]["note"] == "RuntimeError: not today"
    line = harness.progress_line(rows)
    assert "wrong WRONG" in line and "nan WRONG" in line and "broken FAILED" in line


def test_a_wrong_gradient_is_not_timed() -> None:
    case = OpCase(BOUND, (4, 50))
    ours = contenders_of(BOUND, True, CPU)[0]
    call = harness._callable(ours)

    def half(inputs: harness.Inputs) -> harness.Outputs:
        bound, grad = call(inputs)
        return bound, 0.5 * grad

    (row,) = harness.measure([harness.Contender("half", half)], case._inputs(CPU, True), checker(BOUND, True), harness.QUICK)
    assert row["status"] == "wrong" and row["error"] == pytest.approx(0.5, rel=0.01)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert {"floor", "gaussian_kl", "importance_bound", "L_5000", "memory"} <= names
    assert "importance_bound 100x5000" in lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "importance_bound", "nonsense"], "no case nonsense; there are "),
        (["--threads", "0"], "--threads must be positive"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("python -m bench: ") and said in error and error.count("\n") == 1


def test_out_of_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the time is over no case may begin, and the exit code must say so."""
    arguments = ["worker", "--quick", "--threads", "1", "--cases", "importance_bound", "--seconds", "-1", "--out", str(tmp_path)]
    assert command.main(arguments) == command.OUT_OF_TIME
    assert capsys.readouterr().out == "out of time before importance_bound 100x5000\n"
    assert not store.read(tmp_path)


def test_the_smaller_ratio_is_quoted(results: Path) -> None:
    work = next(w for w in works(store.read(results / "machine"), 2) if w.case == "importance_bound")
    assert work.ratios["eager"].value == pytest.approx(2.5)
    assert "compile" not in work.ratios
    assert [r["contender"] for r in work.refused] == ["compile"]
    assert work.bandwidth == pytest.approx(2e6 / 1e-4 / 4e10)


def test_report(results: Path, tmp_path: Path) -> None:
    """The report must replace only the marked part of the README, and write the plot and the full tables."""
    readme, tables = tmp_path / "README.md", tmp_path / "new folder" / "tables.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = ["report", "--results", str(results), "--readme", str(readme), "--out", str(tables)]
    assert command.main(arguments) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    assert "| `L_5000` 784-200-200-50, 2 threads | 10 ms per image |" in text
    assert (results / "machine" / "speedups.png").read_bytes().startswith(b"\x89PNG")
    page = tables.read_text()
    assert "| `importance_bound` 100×5000, forward | 100 µs | 2.5 ✗ (3) | – |" in page and "eager, log_softmax" in page
    assert "compile at `importance_bound` 100×5000, forward (wrong: error 1.0e-07)" in page
    assert "](../results/machine/speedups.png)" in page
    assert command.main(arguments) == 0
    assert readme.read_text() == text


def test_a_few_measurements_elsewhere_leave_the_readme_s_table(results: Path) -> None:
    """The report must show the machine with the most work measured and, among equals, the newest."""
    few = results / "another"
    store.replace(few, [row("ours", 1e-4, date="2027-01-01T00:00:00Z")])
    assert report.fullest(report.read(results), "cpu") == "machine"
    store.replace(few, [one | {"date": "2027-01-01T00:00:00Z"} for one in store.read(results / "machine")])
    assert report.fullest(report.read(results), "cpu") == "another"
    assert report.fullest(report.read(results), "cuda") is None


@pytest.mark.parametrize("text", ["no marks", f"{report.END} {report.BEGIN}", 2 * f"{report.BEGIN}{report.END}"])
def test_report_needs_the_marks(text: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert command.main(["report", "--results", str(results), "--readme", str(readme)]) == 2
    assert "must have one" in capsys.readouterr().err
    assert readme.read_text() == text


def test_report_without_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--results", str(tmp_path)]) == 2
    assert "no measurements in" in capsys.readouterr().err


def test_report_without_matplotlib(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables must not need matplotlib, so that a bare machine with a GPU can show them."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main(["report", "--results", str(results), "--no-readme"]) == 0
    shown = capsys.readouterr()
    assert "importance_bound" in shown.out
    assert "matplotlib is not installed" in shown.err


@pytest.mark.parametrize("arguments", [[], ["--nonsense", "x"], ["one", "two"]])
def test_gpu_check_says_what_is_missing(arguments: list[str], tmp_path: Path) -> None:
    script = ROOT / "bench" / "gpu_check.sh"
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check.sh: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""Command line of the benchmarks: `python -m bench` measures and `python -m bench report` renders. See bench/README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from bench import machine, store
from bench.cases.end_to_end import SCRIPTS, EndToEndCase
from bench.cases.floors import FloorCase
from bench.cases.image_steps import MODELS as IMAGE_MODELS
from bench.cases.image_steps import ImageStepCase
from bench.cases.likelihood import TRAINING_MEMORY, LikelihoodCase, MemoryCase
from bench.cases.op_cases import Context, op_cases
from bench.cases.sampling import SamplingCase
from bench.cases.steps import MODELS, ClassesCase, StepCase
from bench.harness import QUICK, Settings, progress_line
from bench.report import page as report

# glibc reads its tunables when a process starts. The tuned setting makes it keep large temporaries. By default it returns them to
# the system, and the page faults of the next allocation count against the contender that allocates.
TUNABLES = {"default": "", "tuned": "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592"}
RESULTS = machine.ROOT / "bench" / "results"
# The exit code is 3 if --seconds ended the run, 1 if ours was wrong or failed in any case, and 2 for bad arguments.
OUT_OF_TIME = 3


def all_cases(device: str, quick: bool) -> list:
    """Returns every case in the order in which it runs: the ceilings first, then the cases with targets, then the others."""
    steps = [*(StepCase(model) for model in MODELS), ClassesCase(), *(ImageStepCase(model) for model in IMAGE_MODELS)]
    steps += [EndToEndCase(script) for script in SCRIPTS]
    streams = [LikelihoodCase(), SamplingCase(), MemoryCase(), TRAINING_MEMORY]
    return [FloorCase(), *op_cases(device, quick), *steps, *streams]


def fail(message: str) -> NoReturn:
    print(f"python -m bench: {message}", file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Time every op, training steps and log p(x) against their rivals."
    )
    commands = parser.add_subparsers(dest="command")
    for command in (parser, commands.add_parser("worker")):
        command.add_argument("--cases", nargs="+", metavar="NAME", default=[], help="only these cases; see --list")
        command.add_argument("--threads", nargs="+", type=int, default=sorted({1, machine.cores()}), help="thread counts (CPU)")
        command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        command.add_argument("--out", type=Path, help="folder of the machines' folders [bench/results; --quick: build/bench]")
        command.add_argument("--quick", action="store_true", help="a rehearsal of a minute: few samples, nothing compiled")
        command.add_argument("--resume", action="store_true", help="skip what is already measured at this commit")
        command.add_argument("--seconds", type=float, help="start no further case after this time")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    commands.choices["worker"].add_argument("--malloc", choices=list(TUNABLES), default="default")
    report.add_arguments(commands.add_parser("report", help="render the README's table, the plot and the full tables"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.command == "report":
        return report.main(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda needs a GPU and a CUDA build of torch; there is none")
    if min(options.threads) < 1:
        fail(f"--threads must be positive; got {options.threads}")
    known = {case.name for case in all_cases(options.device, options.quick)}
    if unknown := sorted(set(options.cases) - known):
        fail(f"no case {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if options.command == "worker":
        return work(options)
    if options.list:
        for case in all_cases(options.device, options.quick):
            print(case.name, getattr(case, "label", ""))
        return 0
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Starts one process per thread count and malloc setting; processes with the same thread count share their compiled code."""
    start, cpu = time.monotonic(), options.device == "cpu"
    mallocs = ["default"] if options.quick or not cpu else list(TUNABLES)
    threads = options.threads if cpu else [torch.get_num_threads()]
    threads = threads[-1:] if options.quick else threads
    codes = set()
    with tempfile.TemporaryDirectory(prefix="dgmfast-bench-") as cache:
        for malloc in mallocs:
            for count in threads:
                print(f"# {options.device}, {count} threads, {malloc} malloc", flush=True)
                command = [sys.executable, "-m", "bench", "worker", "--malloc", malloc, "--threads", str(count)]
                command += ["--device", options.device, "--out", str(_folder(options))]
                command += [f"--{flag}" for flag in ("quick", "resume") if getattr(options, flag)]
                command += ["--cases", *options.cases] if options.cases else []
                if options.seconds is not None:
                    command += ["--seconds", str(max(0.0, options.seconds - (time.monotonic() - start)))]
                codes.add(subprocess.run(command, env=environment(count, malloc, Path(cache))).returncode)
    print(f"{time.monotonic() - start:.0f} s; results in {_folder(options)}")
    return 1 if codes - {0, OUT_OF_TIME} else max(codes)


def environment(threads: int, malloc: str, cache: Path) -> dict[str, str]:
    """Returns the environment of a worker: all that must be set before its process starts."""
    fresh = dict(os.environ)
    fresh["OMP_NUM_THREADS"] = str(threads)
    fresh["TORCHINDUCTOR_CACHE_DIR"] = str(cache / f"{threads}-threads")
    fresh["GLIBC_TUNABLES"] = TUNABLES[malloc]
    return fresh


def _folder(options: argparse.Namespace) -> Path:
    default = machine.ROOT / "build" / "bench" if options.quick else RESULTS
    return Path(options.out or default).resolve() / machine.slug(options.device)


def work(options: argparse.Namespace) -> int:
    """Measures the cases in this process and writes each one to the machine's folder (`--out`) as soon as it is done."""
    threads = options.threads[0]
    torch.set_num_threads(threads)
    settings = QUICK if options.quick else Settings()
    context = Context(options.device, threads, options.malloc, settings, compile=not options.quick, quick=options.quick)
    facts = machine.describe(options.device)
    done = {store.group_of(row) for row in store.read(options.out) if row.get("commit") == facts["commit"]}
    start, wrong = time.monotonic(), 0
    for case in all_cases(options.device, options.quick):
        groups = case.groups(context)
        if not groups or (options.cases and case.name not in options.cases):
            continue
        if options.resume and all(store.group_of(group) in done for group in groups):
            continue
        if options.seconds is not None and time.monotonic() - start > options.seconds:
            print(f"out of time before {case.name} {getattr(case, 'label', '')}", flush=True)
            return 1 if wrong else OUT_OF_TIME
        for rows in case.run(context):
            store.replace(options.out, [row | facts for row in rows])
            wrong += sum(row["status"] in ("wrong", "failed") and row["contender"] == "ours" for row in rows)
            print(_line(rows), flush=True)
    return 1 if wrong else 0


def _line(rows: Sequence[store.Row]) -> str:
    first = rows[0]
    title = " ".join(str(first[name]) for name in ("case", "shape", "mode") if first[name])
    title += " captured" if first["captured"] else ""
    if "rate" in first:
        return f"{title:<55} {first['rate'] / 1e9:.3g} G{first['unit']}"
    if "grown_bytes" in first:
        return f"{title:<55} " + "  ".join(f"{r['contender']} +{r['grown_bytes'] / 2**20:.0f} MB" for r in rows)
    return f"{title:<55} {progress_line(rows)}"


if __name__ == "__main__":
    sys.exit(main())

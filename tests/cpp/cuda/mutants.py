"""Leaves out each __syncthreads() of the CUDA kernels in turn and checks that the tests then fail: python mutants.py BUILD_DIR

BUILD_DIR is a build of tests/cpp. If the tests pass without a barrier, it is superfluous or not tested, and the exit code is 1.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emulate import BARRIER

KERNELS = Path(__file__).resolve().parents[3] / "csrc" / "kernels" / "cuda"
EMULATE = Path(__file__).with_name("emulate.py")
SECONDS = 300


def fails(build: Path) -> bool:
    """Returns whether the tests fail, or do not end, with the kernels as they are in the build folder."""
    made = subprocess.run(["cmake", "--build", build, "--target", "cuda_kernels"], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(made.stdout)
    try:
        return subprocess.run([build / "tests" / "cpp" / "cuda_kernels"], capture_output=True, timeout=SECONDS).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> None:
    build, unnoticed = Path(sys.argv[1]), 0
    if fails(build):
        raise SystemExit("the tests fail with all barriers in place")
    for source in sorted(KERNELS.iterdir()):
        target = build / "tests" / "cpp" / "cuda" / "emulated" / "kernels" / "cuda" / source.name
        target = target.with_suffix(".cpp") if source.suffix == ".cu" else target
        for number in range(source.read_text().count(BARRIER)):
            emulate = [sys.executable, EMULATE, source, target]
            subprocess.run([*emulate, "--without-barrier", str(number)], check=True)
            noticed = fails(build)
            unnoticed += not noticed
            print(f"{source.name}, barrier {number}: {'noticed' if noticed else 'NOT noticed'}", flush=True)
            subprocess.run(emulate, check=True)
    raise SystemExit(unnoticed > 0)


if __name__ == "__main__":
    main()

"""Compares the registers and spills of the CUDA kernels, as ptxas reports them, with the budget in registers.json.

    python tests/cpp/cuda/registers.py            # exit code 1 if a kernel needs more than its budget
    python tests/cpp/cuda/registers.py --write    # write the budget anew; say in the commit why it grew

It does nothing without nvcc, or with another version than that of the budget, because the compiler chooses the registers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUDGET = Path(__file__).with_name("registers.json")
ARCHITECTURES = ("sm_80", "sm_90")
FLAGS = ("-std=c++20", "-O3", "-DDGMFAST_CUDA", "--expt-relaxed-constexpr", "--extended-lambda", "-Xptxas=-v", "-cubin")
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def nvcc_version() -> str:
    """The version of nvcc, on whose choices the budget depends; empty without nvcc."""
    if shutil.which("nvcc") is None or shutil.which("c++filt") is None:
        return ""
    found = re.search(r"V(\d+\.\d+\.\d+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)
    return found[1] if found else ""


def compiled(source: Path, architecture: str) -> dict[str, list[int]]:
    """kernel template -> [registers, bytes of spills], the most over its instances in a source file."""
    command = ["nvcc", *FLAGS, "-I", str(ROOT / "csrc"), f"-arch={architecture}", "-o", "/dev/null", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    most: dict[str, list[int]] = {}
    for mangled, _, stores, loads, registers in REPORT.findall(done.stderr):
        name = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout
        template = name.removeprefix("void ").replace("(anonymous namespace)::", "").split("<")[0].split("(")[0].split("::")[-1]
        old = most.get(template, [0, 0])
        most[template] = [max(old[0], int(registers)), max(old[1], int(stores) + int(loads))]
    return most


def measured() -> dict[str, dict[str, dict[str, list[int]]]]:
    """architecture -> source file -> kernel template -> [registers, bytes of spills]."""
    sources = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
    pairs = list(product(ARCHITECTURES, sources))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda pair: compiled(pair[1], pair[0]), pairs))
    found: dict[str, dict[str, dict[str, list[int]]]] = {architecture: {} for architecture in ARCHITECTURES}
    for (architecture, source), most in zip(pairs, results, strict=True):
        found[architecture][source.name] = most
    return found


def main() -> int:
    version = nvcc_version()
    if "--write" in sys.argv:
        text = json.dumps({"nvcc": version, "unit": "[registers, bytes of spills]", "kernels": measured()}, indent=1)
        BUDGET.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")
        return 0
    budget = json.loads(BUDGET.read_text())
    if version != budget["nvcc"]:
        print(f"registers: not compared; the budget is for nvcc {budget['nvcc']}, and there is {version or 'none'}")
        return 0
    faults = []
    for architecture, files in measured().items():
        for source, kernels in files.items():
            for kernel, needed in kernels.items():
                allowed = budget["kernels"][architecture].get(source, {}).get(kernel)
                if allowed is None or needed[0] > allowed[0] or needed[1] > allowed[1]:
                    faults.append(f"{source}: {kernel} on {architecture} needs {needed}; its budget is {allowed}")
    print("\n".join(faults) or "registers: every CUDA kernel is within its budget")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Tests of the compiled CPU kernels: the symbols that they define and call, and vectorised loops; it also runs tests/cpp."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
ISAS = ["baseline", "avx2", "avx512"]
VECTOR_BYTES = {"avx2": 32, "avx512": 64}
# The functions that a kernel may call: the compiler itself makes calls of them from loops that copy or clear.
ALLOWED_CALLS = {"memcpy", "memmove", "memset", "_GLOBAL_OFFSET_TABLE_"}


def tool(name: str) -> str:
    """Returns the path of a program beside the interpreter or on the PATH, or skips the test."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def output_of(*command: str | Path) -> str:
    """Returns the combined output of a command, and shows it if the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@dataclass(frozen=True)
class Build:
    """The CMake build of tests/cpp, which compiles the kernels as the extension does."""

    folder: Path
    gcc: bool
    commands: dict[Path, list[str]]  # object file of a kernel -> the command that compiles it

    def objects(self, isa: str) -> list[Path]:
        found = [path for path in self.commands if f"kernels_{isa}.dir" in path.parts]
        if not found:
            pytest.skip(f"no {isa} on this architecture")
        return found

    def make(self, *targets: str) -> str:
        return output_of(tool("cmake"), "--build", self.folder, *(["--target", *targets] if targets else []))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("kernels")
    compiler = os.environ.get("CXX") or tool("c++")
    gcc = "Free Software Foundation" in output_of(*shlex.split(compiler), "--version")
    flags = "-fopt-info-vec-optimized-missed" if gcc else ""
    settings = ["-DDGMFAST_CPP_TESTS=ON", f"-DCMAKE_CXX_FLAGS={flags}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    output_of(tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", *settings)
    entries = json.loads((folder / "compile_commands.json").read_text())
    commands = {folder / entry["output"]: shlex.split(entry["command"]) for entry in entries if "/kernels_" in entry["output"]}
    assert len(commands) >= len(list((SOURCES / "kernels" / "cpu").glob("*.cpp"))) - 1, "isa.cpp alone is compiled just once"
    return Build(folder, gcc, commands)


@pytest.fixture(scope="session")
def remarks(build: Build) -> dict[Path, str]:
    """Returns the compiler's remarks on the loops of each kernel, after building its object file."""
    if not build.gcc:
        pytest.skip("the compiler is not GCC")
    said: dict[Path, str] = {}
    log = build.make(*sorted({path.relative_to(build.folder).parts[1].removesuffix(".dir") for path in build.commands}))
    # Ninja prints "[3/21] Building CXX object <object>" and then the output of this command.
    for step in re.split(r"^\[\d+/\d+\] ", log, flags=re.M)[1:]:
        title, _, text = step.partition("\n")
        said[build.folder / title.rpartition(" ")[2]] = text
    return said


def faults_of_symbols(path: Path, isa: str) -> list[str]:
    """Returns the symbols of an object that would let the linker mix it with the object of another instruction set."""
    faults, kernel = [], f"_ZN7dgmfast3cpu{len(isa)}{isa}"
    for line in output_of(tool("nm"), "-P", path).splitlines():
        name, kind = line.split()[:2]
        if kind in "WwVvui":
            faults.append(f"weak symbol {name}")
        elif kind == "U":
            if name not in ALLOWED_CALLS:
                faults.append(f"call of {name}")
        elif kind.isupper() and not name.startswith(kernel):
            faults.append(f"visible symbol {name}")
        if re.match(r"_GLOBAL__(sub_)?[ID]_", name):
            faults.append(f"static initialiser {name}")
    faults += [f"section {name}" for name in (".init_array", ".ctors") if name.encode() in path.read_bytes()]
    return faults


def simd_loops(path: Path) -> list[range]:
    """Returns the lines of each loop marked `omp simd`, from its `for` to the end of its body."""
    lines = [line.partition("//")[0] for line in path.read_text().splitlines()]
    loops = []
    for first in (i for i, line in enumerate(lines) if re.match(r"\s*#\s*pragma\s+omp\b.*\bsimd\b", line)):
        depth, last = 0, first
        while last == first or depth or not re.search(r"[;}]\s*$", lines[last]):
            last += 1
            depth += sum(lines[last].count(c) for c in "({[") - sum(lines[last].count(c) for c in ")}]")
        loops.append(range(first + 2, last + 2))  # line numbers begin with 1
    return loops


REMARK = re.compile(
    r"^(.*):(\d+):\d+: (?:missed: (couldn't vectorize loop)|optimized: loop vectorized using \D*(\d+) byte)", re.M
)


def unvectorised(path: Path, said: Sequence[str], width: int) -> list[str]:
    """Returns the loops that the compiler missed in any instance, or never vectorised with the whole width."""
    found: list[tuple[int, int]] = []  # line, and bytes of the vectors (0: the loop was missed)
    for text in said:
        for file, line, missed, size in REMARK.findall(text):
            if Path(file).name == path.name and Path(file).resolve() == path.resolve():
                found.append((int(line), 0 if missed else int(size)))
    faults = []
    for loop in simd_loops(path):
        sizes = {size for line, size in found if line in loop}
        if 0 in sizes:
            faults.append(f"{path.name}:{loop.start}: not vectorised in every instance")
        elif width not in sizes:
            faults.append(f"{path.name}:{loop.start}: vectors of {sorted(sizes) or 'no'} bytes, {width} expected")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_objects_share_nothing(isa: str, build: Build, remarks: dict[Path, str]) -> None:
    """An object must have no weak symbols, static initialisers or library calls such as exp, and export only its kernels."""
    faults = {path.name: faults_of_symbols(path, isa) for path in build.objects(isa)}
    assert not {name: found for name, found in faults.items() if found}


@pytest.mark.slow
@pytest.mark.parametrize("isa", VECTOR_BYTES)
def test_simd_loops_are_vectorised(isa: str, build: Build, remarks: dict[Path, str]) -> None:
    objects = build.objects(isa)
    loops, faults = 0, []
    for path in sorted(SOURCES.rglob("*.cpp")) + sorted(SOURCES.rglob("*.h")):
        loops += len(simd_loops(path))
        faults += unvectorised(path, [remarks[o] for o in objects], VECTOR_BYTES[isa])
    assert loops >= len(objects)
    assert not faults


@pytest.mark.slow
def test_cpp(build: Build) -> None:
    """The C++ tests of the maths and kernels must pass for every instruction set of this processor."""
    build.make()
    output = output_of(tool("ctest"), "--test-dir", build.folder, "--output-on-failure")
    for name in ("math_baseline", "kernels"):
        assert re.search(rf" {name} \.+ +Passed", output), output


@pytest.mark.slow
def test_documented_accuracy(build: Build) -> None:
    """docs/kernels.md must state the limits that test_math.cpp and test_philox.cpp use for each function of csrc/math."""
    build.make("math_baseline")
    output = output_of(build.folder / "tests" / "cpp" / "math_baseline")
    limits = {name: float(limit) for name, limit in re.findall(r"^  (\w+<\w+>) +[\d.]+ ulp .*\(limit ([\d.]+)\)$", output, re.M)}
    page = (ROOT / "docs" / "kernels.md").read_text()
    stated = {}
    for name, float_limit, double_limit in re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", page, re.M):
        stated |= {f"{name}<float>": float(float_limit), f"{name}<double>": float(double_limit)}
    assert stated == limits


def kernel(body: str, isa: str = "avx2") -> str:
    return f"namespace dgmfast::cpu::{isa} {{ void kernel(float* x, long n) {{ {body} }} }}\n"


def loop(body: str, end: str = "n") -> str:
    return kernel(f"\n#pragma omp simd\nfor (long i = 0; i < {end}; ++i) {body};\n")


OPAQUE = 'namespace { __attribute__((noinline)) float opaque(float a) { asm("" : "+x"(a)); return a; } }\n'
SHARED = "template <class T> __attribute__((noinline)) void clear(T* x) { x[0] = 0; }\n"
START = "static volatile int one = 1; static int two = 2 * one;\n"
# Kernels with one fault each, and the expected message.
FAULTS = {
    "none": (loop("x[i] += 1.0f"), ""),
    "weak symbol": (SHARED + kernel("clear(x);"), "weak symbol _Z5clear"),
    "initialiser": (START + kernel("x[0] = two;"), ".init_array"),
    "visible symbol": ("namespace dgmfast { void other(float* x) { x[0] = 0; } }\n", "visible symbol _ZN7dgmfast5other"),
    "another namespace": (kernel("x[0] = 0;", "avx512"), "visible symbol _ZN7dgmfast3cpu6avx5126kernel"),
    "library call": (kernel("x[0] = __builtin_expf(x[0]);"), "call of expf"),
    "scalar loop": (OPAQUE + loop("x[i] = opaque(x[i])"), "fault.cpp:4: not vectorised in every instance"),
    "vanished loop": (loop("x[i] += 1.0f", end="1"), "fault.cpp:3: vectors of no bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str, build: Build, tmp_path: Path) -> None:
    """The two checks above must find the fault of each kernel, and none in the correct kernel."""
    if not build.gcc:
        pytest.skip("the compiler is not GCC")
    code, expected = FAULTS[fault]
    command = build.commands[build.objects("avx2")[0]]
    source, target = tmp_path / "fault.cpp", tmp_path / "fault.o"
    source.write_text(code)
    said = output_of(*command[: command.index("-o")], "-o", target, "-c", source)
    found = faults_of_symbols(target, "avx2") + unvectorised(source, [said], VECTOR_BYTES["avx2"])
    assert any(expected in message for message in found) if expected else not found, found


# The project's headers that each folder may include; none may include those of torch or Python.
ROOMS = {
    "math": ("math/",),
    "kernels": ("kernels/row_plan.h", "kernels/kernel.h"),
    "kernels/cpu": ("kernels/", "math/"),
    "kernels/cuda": ("kernels/", "math/"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_names_what_it_may_not(room: str) -> None:
    files = [path for path in (SOURCES / room).iterdir() if path.is_file()]
    assert files
    for path in files:
        for kind, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            outside = re.match(r"torch/|ATen/|c10/|caffe2/|pybind11/|Python\.h", header)
            assert not outside and (kind == "<" or header.startswith(ROOMS[room])), f"{path.name} includes {header}"

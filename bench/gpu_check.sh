#!/usr/bin/env bash
# Builds dgmfast for the GPU of this machine, tests it there and benchmarks it, in at most nine minutes and without a network.
#
#   bench/gpu_check.sh [--no-tests] [--rehearse] OUT_DIR
#
#   --no-tests   build and benchmark only: goes on where an earlier call into the same OUT_DIR had no time left
#   --rehearse   the same stages on the CPU, with a few tests and one benchmark; where nvcc is, the CUDA kernels are built, too
#
# PYTHON chooses the interpreter [python3], DGMFAST_COMMIT and DGMFAST_DIRTY=0|1 name the code where there is no git. OUT_DIR gets
# summary.txt, build.log, tests.log, tests.xml, bench.log, report.md and bench/<card>/, which belongs under bench/results/.
set -uo pipefail

fail() { echo "gpu_check.sh: $1" >&2; exit 2; }

tests=yes rehearse=no out=
for argument; do
  case $argument in
    --no-tests) tests=no ;;
    --rehearse) rehearse=yes ;;
    -*) fail "there is no option $argument; the options are --no-tests and --rehearse" ;;
    *) [[ -z $out ]] || fail "one OUT_DIR is expected, got $out and $argument"; out=$argument ;;
  esac
done
[[ -n $out ]] || fail "the folder for the results is missing: bench/gpu_check.sh OUT_DIR"

# What must be there
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}; set PYTHON to an interpreter that has torch"
[[ $python = /* ]] || python=$PWD/$python
export PATH=$(dirname "$python"):$PATH
cuda=${CUDA_HOME:-/usr/local/cuda}
nvcc=$(command -v "${CUDACXX:-nvcc}" || command -v "$cuda/bin/nvcc") || nvcc=
"$python" -c 'import torch' 2>/dev/null || fail "$python cannot import torch; set PYTHON to an interpreter that has it"
IFS='|' read -r torch toolkit gpu arch missing < <("$python" - <<'EOF'
import importlib.util
import torch
there = torch.cuda.is_available()
missing = [name for name in ("numpy", "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
print(
    torch.__version__,
    torch.version.cuda or "none",
    torch.cuda.get_device_name() if there else "none",
    "".join(map(str, torch.cuda.get_device_capability())) if there else "90",
    " ".join(missing),
    sep="|",
)
EOF
)
[[ -z $missing ]] || fail "$python has no ${missing// /, no }; the tests need it"
for program in cmake ninja timeout; do
  command -v $program >/dev/null || fail "$program is not on the PATH"
done
if [[ $rehearse = no ]]; then
  [[ -n $nvcc ]] || fail "nvcc is neither on the PATH nor in $cuda/bin; install the CUDA toolkit or set CUDA_HOME"
  [[ $toolkit != none ]] || fail "torch $torch is built without CUDA; install a CUDA build of torch"
  [[ $gpu != none ]] || fail "torch $torch sees no GPU; see whether nvidia-smi lists one"
fi
mkdir -p "$out" 2>/dev/null && out=$(cd "$out" && pwd) && [[ -w $out ]] || fail "the folder $out cannot be made or written"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)

# Which code: git where it is, the environment elsewhere
code=(. ':!bench/results' ':!README.md' ':!docs') # as in bench/machine.py
if commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
  [[ $out = "$root"/* ]] && code+=(":!${out#"$root"/}")
  changed=$(git -C "$root" status --porcelain -- "${code[@]}")
  DGMFAST_COMMIT=$commit DGMFAST_DIRTY=$([[ -n $changed ]] && echo 1 || echo 0)
fi
export DGMFAST_COMMIT=${DGMFAST_COMMIT:-unknown} DGMFAST_DIRTY=${DGMFAST_DIRTY:-0}

# Everything runs from a copy with the extension in it, so that neither the source tree nor an installed dgmfast shadows it
work=$root/build/gpu_check copy=$root/build/gpu_check/copy
rm -rf "$copy" && mkdir -p "$copy" || fail "$work cannot be written"
cp -r "$root"/{dgmfast,bench,tests,csrc,CMakeLists.txt,pyproject.toml} "$copy"
rm -rf "$copy"/bench/results "$copy"/dgmfast/_C.* "$copy"/dgmfast/_build_info.py
"$python" -c 'import sys; sys.exit(any("_editable_skbc_dgmfast" in type(f).__module__ for f in sys.meta_path))' ||
  echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "_editable_skbc_dgmfast" not in type(f).__module__]' \
    >"$copy/sitecustomize.py"
export PYTHONPATH=$copy PYTHONUNBUFFERED=1 GIT_CEILING_DIRECTORIES=$work

# The stages: each has its own seconds, none more than what is left of the whole; a failed one does not stop the next
deadline=530 failed=0 incomplete=0
rm -f "$out"/{build.log,bench.log,report.md}
[[ $tests = no ]] || rm -f "$out"/{summary.txt,tests.log,tests.xml}
left() { echo $((deadline - SECONDS)); }
say() { echo "$1" | tee -a "$out/summary.txt"; }
title="dgmfast $DGMFAST_COMMIT"
[[ $DGMFAST_DIRTY = 0 ]] || title+=" with uncommitted changes"
[[ $rehearse = no ]] || title+=", a rehearsal"
say "$title, $(date -u +%FT%TZ)"
say "card $gpu, driver ${driver:-unknown}, compute capability $arch, torch $torch, CUDA of torch $toolkit, nvcc ${nvcc:-none}"

stage() { # NAME SECONDS LOG COMMAND...
  local name=$1 limit=$2 log=$out/$3 begun=$SECONDS status unfinished=none
  [[ $name = bench* ]] && unfinished=3 # python -m bench: out of time before the last case
  shift 3
  ((limit > $(left))) && limit=$(left)
  if ((limit < 5)); then
    failed=1
    say "$name: FAILED, no time was left"
    return
  fi
  echo "# $name: at most $limit s" >>"$log"
  (cd "$copy" && timeout -s INT -k 10 "$limit" "$@") >>"$log" 2>&1
  status=$?
  case $status in
    0) say "$name: ok, $((SECONDS - begun)) s" ;;
    124 | 137) failed=1 && say "$name: FAILED, stopped after its $limit s (exit $status); see ${log##*/}" ;;
    "$unfinished") incomplete=1 && say "$name: incomplete, $((SECONDS - begun)) s ($(grep '^out of time' "$log"))" ;;
    *) failed=1 && say "$name: FAILED, exit $status, $((SECONDS - begun)) s; see ${log##*/}" ;;
  esac
}

build() {
  local settings=(-DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" -DDGMFAST_CUDA=OFF)
  [[ -z $nvcc ]] || settings+=(-DDGMFAST_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES="$arch")
  cmake -S "$root" -B "$work/cmake" -G Ninja "${settings[@]}" && cmake --build "$work/cmake" &&
    cmake --install "$work/cmake" --prefix "$copy"
}
export -f build
export root work copy python nvcc arch
stage build $([[ $rehearse = yes ]] && echo 400 || echo 200) build.log bash -c build

stage import 60 build.log "$python" -c '
import os, pathlib, dgmfast
here, cuda = pathlib.Path(dgmfast._C.__file__).resolve(), dgmfast._C.cuda_architectures
assert here.is_relative_to(pathlib.Path(os.environ["copy"]).resolve()), f"{here} shadows what was built"
assert not os.environ["nvcc"] or os.environ["arch"] in cuda.split(), f"built for {cuda}"
print("dgmfast._C for", dgmfast._C.isa(), "and CUDA architectures", cuda or "none")'

# The files whose imports this machine has; of them the tests whose name or parameter is the device
find_tests() {
  "$python" - <<'EOF'
import ast, importlib.metadata, importlib.util, pathlib, re, sys, tomllib

def installed(requirement):
    try:
        return bool(importlib.metadata.version(re.match(r"[\w.-]+", requirement)[0]))
    except importlib.metadata.PackageNotFoundError:
        return False

sys.path.insert(0, "tests")
train = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
absent = [requirement for requirement in train if not installed(requirement)]
for path in sorted(pathlib.Path("tests").glob("test_*.py")):
    body = ast.parse(path.read_text()).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
    roots = sorted({name.split(".")[0] for name in names})
    needs = [root for root in roots if importlib.util.find_spec(root) is None] + (absent if "toy" in roots else [])
    print(f"left out: {path} (needs {', '.join(needs)})" if needs else path, file=sys.stderr if needs else sys.stdout)
EOF
}
if [[ $tests = yes ]]; then
  mapfile -t files < <(cd "$copy" && find_tests 2>>"$out/tests.log")
  grep '^left out' "$out/tests.log" | while read -r line; do say "$line"; done
  selected=(-k "cuda or devices")
  if [[ $rehearse = yes ]]; then
    files=(tests/test_gaussian_kl.py tests/test_vae.py) selected=(-k cpu -p no:timeout)
  fi
  stage tests 200 tests.log "$python" -m pytest "${files[@]}" "${selected[@]}" -p no:cacheprovider --junitxml="$out/tests.xml"
  counts=$(grep -E '[0-9]+ (passed|failed|errors?|deselected)' "$out/tests.log" | tail -n 1)
  say "  ${counts:-no test was run}"
  grep -E '^(FAILED|ERROR) ' "$out/tests.log" | head -n 20 | cut -c 1-200 | while read -r line; do say "  $line"; done
fi

# The likelihood first, whose targets matter most and whose time is known; then whatever fits
bench=("$python" -m bench --out "$out/bench")
[[ $DGMFAST_DIRTY = 0 && $DGMFAST_COMMIT != unknown ]] && bench+=(--resume) # else what is there may be of other code
report_time=25
if [[ $rehearse = yes ]]; then
  stage bench 60 bench.log "${bench[@]}" --device cpu --quick --cases importance_bound
else
  bench+=(--device cuda)
  stage 'bench of L_5000' 130 bench.log "${bench[@]}" --cases floor L_5000
  mapfile -t names < <(cd "$copy" && "${bench[@]}" --list | cut -d ' ' -f 1 | sort -u | grep -vxE 'floor|L_5000')
  limit=$(($(left) - report_time)) # a case that began in time may take some 45 s
  stage bench $limit bench.log "${bench[@]}" --cases "${names[@]}" --seconds $((limit > 45 ? limit - 45 : 0))
fi
stage report $report_time bench.log "$python" -m bench report --results "$out/bench" --no-readme --out "$out/report.md"
measured=$(cat "$out"/bench/*/measurements.jsonl 2>/dev/null)
say "  $(grep -c . <<<"$measured") measurements"
grep -E '"status": "(wrong|failed)"' <<<"$measured" | cut -c 1-200 | head -n 20 | while read -r line; do say "  $line"; done

((incomplete)) && say "Not every case fitted into the time; the same command with --no-tests goes on from here."
say "$( ((failed)) && echo FAILED || echo ok) after $SECONDS s"
exit $failed

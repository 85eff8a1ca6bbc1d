#!/usr/bin/env bash
# Builds dgmfast for the GPU of this machine, tests it there and measures it, in at most six minutes and without a network. What is
# worth most comes first; each stage has its own seconds, and a stage that fails does not stop the next.
#
#   bench/gpu_check.sh [--seconds N] [--rehearse] OUT_DIR
#
#   --seconds N  the time for all stages [350]
#   --rehearse   the same stages on the CPU, with a few tests and one benchmark; where nvcc is, the CUDA kernels are built, too
#
# The same command goes on where an earlier one had no time left, on the same machine and at the same commit: stages that ended well
# are not repeated. PYTHON chooses the interpreter [python3]; DGMFAST_COMMIT and DGMFAST_DIRTY=0|1 name the code where there is no git.
# OUT_DIR gets summary.txt, log.txt with the output of all stages, report.md, and bench/<card>/, which belongs under bench/results/.
set -uo pipefail

fail() { echo "gpu_check.sh: $1" >&2; exit 2; }

seconds=350 rehearse=no out=
while (($#)); do
  case $1 in
    --seconds) [[ ${2:-} =~ ^[1-9][0-9]{0,4}$ ]] || fail "--seconds takes a whole number; got ${2:-nothing}"; seconds=$2; shift ;;
    --rehearse) rehearse=yes ;;
    -*) fail "there is no option $1; the options are --seconds and --rehearse" ;;
    *) [[ -z $out ]] || fail "one OUT_DIR is expected, got $out and $1"; out=$1 ;;
  esac
  shift
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

# The stages
failed=0 incomplete=0 log=$out/log.txt finished=$work/finished-$DGMFAST_COMMIT-$arch
left() { echo $((seconds - SECONDS)); }
say() { echo "$1" | tee -a "$out/summary.txt"; }
title="dgmfast $DGMFAST_COMMIT"
[[ $DGMFAST_DIRTY = 0 && $DGMFAST_COMMIT != unknown ]] || { title+=" with uncommitted changes"; rm -f "$finished"; }
[[ $rehearse = no ]] || title+=", a rehearsal"
say "$title, $(date -u +%FT%TZ)"
say "card $gpu, driver ${driver:-unknown}, compute capability $arch, torch $torch, CUDA of torch $toolkit, nvcc ${nvcc:-none}"

stage() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 begun=$SECONDS status unfinished=none
  [[ $name = bench* ]] && unfinished=3 # python -m bench: out of time before the last case
  shift 2
  if grep -qxF "$name" "$finished" 2>/dev/null; then
    say "$name: ok, in an earlier call"
    return
  fi
  ((limit > $(left))) && limit=$(left)
  if ((limit < 5)); then
    incomplete=1
    say "$name: no time was left"
    return
  fi
  echo "# $name: at most $limit s" >>"$log"
  (cd "$copy" && timeout -s INT -k 10 "$limit" "$@") >>"$log" 2>&1
  status=$?
  case $status in
    0) say "$name: ok, $((SECONDS - begun)) s"; [[ $name = build ]] || echo "$name" >>"$finished" ;;
    124 | 137) failed=1 && say "$name: FAILED, stopped after its $limit s (exit $status); see log.txt" ;;
    "$unfinished") incomplete=1 && say "$name: incomplete, $((SECONDS - begun)) s ($(grep '^out of time' "$log" | tail -n 1))" ;;
    *) failed=1 && say "$name: FAILED, exit $status, $((SECONDS - begun)) s; see log.txt" ;;
  esac
}
tell() { # the lines of a stage's output that begin with a pattern, at most 25
  sed -n "/^# $1: at most/,\$p" "$log" | grep -E "$2" | head -n 25 | cut -c 1-200 | while read -r line; do say "  $line"; done
}

build() {
  local settings=(-DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" -DDGMFAST_CUDA=OFF)
  [[ -z $nvcc ]] || settings+=(-DDGMFAST_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES="$arch")
  cmake -S "$root" -B "$work/cmake" -G Ninja "${settings[@]}" && cmake --build "$work/cmake" &&
    cmake --install "$work/cmake" --prefix "$copy"
}
export -f build
export root work copy python nvcc arch
stage build $([[ $rehearse = yes ]] && echo 600 || echo 150) bash -c build

stage import 40 "$python" -c '
import os, pathlib, dgmfast
here, cuda = pathlib.Path(dgmfast._C.__file__).resolve(), dgmfast._C.cuda_architectures
assert here.is_relative_to(pathlib.Path(os.environ["copy"]).resolve()), f"{here} shadows what was built"
assert not os.environ["nvcc"] or os.environ["arch"] in cuda.split(), f"built for {cuda}"
print("dgmfast._C for", dgmfast._C.isa(), "and CUDA architectures", cuda or "none")'

device=$([[ $rehearse = yes ]] && echo cpu || echo cuda)
smoke=("$python" tests/device_smoke.py "$device")
stage 'every op against float64' 45 "${smoke[@]}"
tell 'every op against float64' 'WRONG|^[0-9]+ wrong'
if [[ $rehearse = no ]]; then
  checker=$(command -v compute-sanitizer || echo "$cuda/bin/compute-sanitizer") ours=()
  "$checker" --help 2>/dev/null | grep -q -- --kernel-name && ours=(--kernel-name kns=dgmfast) # else the kernels of torch, too
  for tool in memcheck racecheck; do
    stage "compute-sanitizer $tool" 45 "$checker" --tool "$tool" --error-exitcode 9 "${ours[@]}" "${smoke[@]}" --tiny
    tell "compute-sanitizer $tool" '^=+ (ERROR SUMMARY|RACECHECK SUMMARY|Invalid|Error|Warning)'
  done
fi

# The tests of the ops on the device, but for those that compile; with several at once where xdist is
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
for path in sorted(pathlib.Path("tests").rglob("test_*.py")):
    body = ast.parse(path.read_text()).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
    names |= {f"{node.module}.{alias.name}" for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    roots = sorted({name.split(".")[0] for name in names})
    needs = [root for root in roots if importlib.util.find_spec(root) is None] + (absent if "support.toy" in names else [])
    print(f"left out: {path} (needs {', '.join(needs)})" if needs else path, file=sys.stderr if needs else sys.stdout)
EOF
}
mapfile -t files < <(cd "$copy" && find_tests 2>>"$log")
grep '^left out' "$log" | sort -u | while read -r line; do say "$line"; done
pytest=("$python" -m pytest -p no:cacheprovider)
"$python" -c 'import xdist' 2>/dev/null && pytest+=(-n "$([[ $rehearse = yes ]] && echo 2 || echo 12)")
run_tests() { # NAME SECONDS EXPRESSION
  stage "$1" "$2" "${pytest[@]}" "${files[@]}" -k "$3"
  tell "$1" '[0-9]+ (passed|failed|errors?) |^(FAILED|ERROR) '
}
if [[ $rehearse = yes ]]; then
  files=(tests/ops/test_gaussian_kl.py tests/models/test_vae.py)
  run_tests tests 200 'cpu and not compile'
else
  run_tests tests 100 '(cuda or devices) and not compile and not inductor and not opcheck'
fi

# First the ceilings and the likelihood, whose targets matter most; then ours against eager, one case after the other
bench=("$python" -m bench --out "$out/bench")
[[ $DGMFAST_DIRTY = 0 && $DGMFAST_COMMIT != unknown ]] && bench+=(--resume) # else what is there may be of other code
report_time=15
if [[ $rehearse = yes ]]; then
  stage bench 60 "${bench[@]}" --device cpu --quick --cases importance_bound
else
  bench+=(--device cuda)
  stage 'bench of the ceilings' 30 "${bench[@]}" --cases floor
  stage 'bench of L_5000' 75 "${bench[@]}" --cases L_5000
  kernels=(--launch-count 40 --kernel-name regex:'sum_rows|sum_gradients|forward|convolve|weight_gradient' --clock-control none)
  kernels+=(--metrics gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed)
  mapfile -t names < <(cd "$copy" && "${bench[@]}" --list | cut -d ' ' -f 1 | sort -u | grep -vxE 'floor|L_5000')
  limit=$(($(left) - report_time - 30)) # a case that began in time may take some 45 s
  stage bench $limit "${bench[@]}" --cases "${names[@]}" --seconds $((limit > 45 ? limit - 45 : 0))
  profiler=$(command -v ncu || echo "$cuda/bin/ncu")
  stage 'ncu' 30 "$profiler" "${kernels[@]}" "$python" tests/device_smoke.py cuda --tiny
  run_tests 'tests that compile' 300 '(cuda or devices) and (compile or inductor or opcheck)'
fi
stage report $report_time "$python" -m bench report --results "$out/bench" --no-readme --out "$out/report.md"
measured=$(cat "$out"/bench/*/measurements.jsonl 2>/dev/null)
say "  $(grep -c . <<<"$measured") measurements"
grep -E '"status": "(wrong|failed)"' <<<"$measured" | cut -c 1-200 | head -n 20 | while read -r line; do say "  $line"; done

((incomplete)) && say "Not everything fitted into the time; the same command goes on from here."
say "$( ((failed)) && echo FAILED || echo ok) after $SECONDS s"
exit $failed

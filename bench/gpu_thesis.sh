#!/usr/bin/env bash
# Trains and evaluates the thesis's recipes on the GPU within a time budget. The same command goes on where it stopped.
#
#   bench/gpu_thesis.sh [--seconds N] [--device D] [--iw K] OUT_DIR [RECIPE[:EPOCHS] ...]
#
#   --seconds N  the time for all recipes [300]
#   --device D   cuda or cpu [cuda]
#   --iw K       importance samples of the likelihoods [5000]
#
# Each recipe trains to its epochs, which EPOCHS shortens, is evaluated and, with labels, classified. A recipe that the time cuts off has a
# checkpoint. DGMFAST_DATA_DIR names the data; PYTHON the interpreter [python3], which must have dgmfast. OUT_DIR gets a folder for each
# run, and summary.md with the epochs, the seconds and the numbers of each.
set -uo pipefail

fail() { echo "gpu_thesis.sh: $1" >&2; exit 2; }

seconds=300 device=cuda iw=5000 out= recipes=()
while (($#)); do
  case $1 in
    --seconds) [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || fail "--seconds takes a whole number; got ${2:-nothing}"; seconds=$2; shift ;;
    --device) device=${2:-}; shift ;;
    --iw) [[ ${2:-} =~ ^[1-9][0-9]{0,6}$ ]] || fail "--iw takes a whole number; got ${2:-nothing}"; iw=$2; shift ;;
    -*) fail "there is no option $1; the options are --seconds, --device and --iw" ;;
    *) if [[ -z $out ]]; then out=$1; else recipes+=("$1"); fi ;;
  esac
  shift
done
[[ -n $out ]] || fail "the folder for the results is missing: bench/gpu_thesis.sh OUT_DIR"
((${#recipes[@]})) || recipes=(adgm-mnist-100 lvae-mnist sdgm-mnist-100 cagem-mnist-100 vae-mnist iwae2-mnist avae-mnist m2-mnist-100 fame-mnist)
python=$(command -v "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}; set PYTHON to an interpreter that has dgmfast"
"$python" -c 'import dgmfast' || fail "$python cannot import dgmfast; install it first"
mkdir -p "$out" || fail "the folder $out cannot be made"
log=$out/log.txt
left() { echo $((seconds - SECONDS)); }

# A stage that the time interrupts has saved its state. A finished one leaves a file that says so.
stage() { # FOLDER NAME COMMAND...
  local done_file=$1/.$2.done name=$2
  shift 2
  [[ -e $done_file ]] && return 0
  (($(left) > 5)) || return 1
  echo "# $name: $*" >>"$log"
  timeout -s INT -k 20 "$(left)" "$@" >>"$log" 2>&1 || return 1
  touch "$done_file"
}

for entry in "${recipes[@]}"; do
  recipe=${entry%%:*} folder=$out/${entry%%:*}
  shorter=()
  [[ $entry == *:* ]] && shorter=(--epochs "${entry##*:}")
  mkdir -p "$folder"
  dgmfast=("$python" -m dgmfast)
  stage "$folder" train "${dgmfast[@]}" train "$recipe" --out "$folder" --resume "${shorter[@]}" --device "$device" --no-progress || { (($(left) > 5)) && continue; break; }
  stage "$folder" evaluate "${dgmfast[@]}" evaluate "$folder" --iw "$iw" --device "$device" --no-progress
  [[ $recipe == *-100 || $recipe == *-1000 ]] && stage "$folder" classify "${dgmfast[@]}" classify "$folder" --samples 100 --device "$device"
done

"$python" - "$out" <<'EOF' | tee "$out/summary.md"
import json, sys
from pathlib import Path

print("| recipe | epochs | seconds of training | last test L_1, nats | L_K, nats | test error, % |\n|---|--:|--:|--:|--:|--:|")
for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/metrics.jsonl")):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if not records:
        continue
    bounds = [record[name] for record in records for name in ("test_elbo", "valid_elbo") if name in record]
    row = [folder.name, len(records), f"{sum(record['seconds'] for record in records):.0f}", f"{bounds[-1]:.2f}" if bounds else ""]
    evaluation = folder / "evaluation.json"
    found = json.loads(evaluation.read_text())["bounds"] if evaluation.exists() else {}
    row.append(f"{list(found)[-1]} {list(found.values())[-1]['nats']:.2f}" if found else "")
    errors = folder / "classification.json"
    row.append(f"{json.loads(errors.read_text())['error']:.2f}" if errors.exists() else "")
    print("| " + " | ".join(map(str, row)) + " |")
EOF
echo "after $SECONDS s" | tee -a "$out/summary.md"

#!/usr/bin/env bash
# What a short time on a machine with a GPU is for: builds segloss for that GPU, tests it and measures it, offline.
#
#     tools/gpu_check.sh                              every step, nine minutes at most
#     STEPS="build bench table" tools/gpu_check.sh    some of them
#
# Each step prints one line, the last one the tables; everything else goes to files in OUT, by default build/gpu.
# PYTHON, by default python3, must have torch. Exit status: 1 if a step failed, 2 for an unknown step, 3 without a GPU.
# shellcheck disable=SC2317 # the steps are run by their names
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

declare -A SECONDS_FOR=([build]=120 [tests]=120 [sanitizer]=60 [bench]=170 [profile]=40 [table]=10)
STEPS=${STEPS:-build tests sanitizer bench profile table}
export OUT=${OUT:-build/gpu} PYTHON=${PYTHON:-python3} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
export SKIPPED=77
# The Makefile's tests of values and gradients.
export NUMBERS="contract layouts targets focal soft_stats region metrics accuracy topk total_weight dice_classes \
regressions distance surface_metrics boundary losses_of_maps lovasz components lesions instance skeleton cldice"

# ---- the steps: each a function that a bash of its own runs ---------------------------------------------------------

build() { # with line numbers, which the tools below print; the code is the same
    SEGLOSS_CUDA=1 TORCH_CUDA_ARCH_LIST=$ARCHITECTURE NVCC_APPEND_FLAGS=-lineinfo \
        "$PYTHON" setup.py --quiet build_ext --inplace && "$PYTHON" -c "
import torch, segloss
assert torch._C._dispatch_has_kernel_for_dispatch_key('segloss::cross_entropy_forward', 'CUDA'), 'no CUDA kernels'
print('torch', torch.__version__, 'on', torch.cuda.get_device_name())"
}

tests() { # a warning of another torch is no failure here
    local file files=(tests/test_cuda.py)
    for file in $NUMBERS; do
        files+=("tests/test_$file.py")
    done
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive "$PYTHON" -m pytest --numprocesses "$(nproc)" --dist worksteal --quiet \
        --tb=short --maxfail=100 -p no:cacheprovider -o filterwarnings=default -k cuda "${files[@]}"
}

sanitizer() { # every tensor is an allocation of its own, so that an access beyond it is seen
    command -v compute-sanitizer || return "$SKIPPED"
    local tool pids=() status=0
    for tool in ${SANITIZERS:-memcheck racecheck}; do
        (PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
            "$PYTHON" tools/gpu_calls.py small 2>&1 | sed --unbuffered "s/^/$tool: /") &
        pids+=($!)
    done
    for tool in "${pids[@]}"; do
        wait "$tool" || status=1
    done
    grep --quiet "Device not supported" "$OUT/sanitizer.log" && return "$SKIPPED"
    return "$status"
}

bench() {
    rm -f "$OUT/bench.json"
    "$PYTHON" benchmarks/bench.py --device cuda --quick --json "$OUT/bench.json"
}

profile() { # the clocks stay as they are: others may share the card
    rm -f "$OUT/profile.csv"
    command -v ncu || return "$SKIPPED"
    local counters
    counters=$("$PYTHON" tools/gpu_counters.py) || return
    ncu --clock-control none --profile-from-start off --metrics "$counters" --csv --page raw --print-units base \
        --log-file "$OUT/profile.csv" "$PYTHON" tools/gpu_calls.py large && return
    cat "$OUT/profile.csv"
    grep --quiet -E "ERR_NVGPUCTRPERM|LibraryNotLoaded" "$OUT/profile.csv" && return "$SKIPPED"
    return 1
}

table() {
    cat "$OUT/steps.txt"
    [[ ! -s $OUT/profile.csv ]] || "$PYTHON" tools/gpu_counters.py "$OUT/profile.csv"
    [[ ! -s $OUT/bench.json ]] || "$PYTHON" benchmarks/report.py "$OUT/bench.json"
}

export -f build tests sanitizer bench profile table

# ---- running them ---------------------------------------------------------------------------------------------------

# What a step's log says of how it ended, in one line.
result_of() {
    local log=$OUT/$1.log line=""
    case $1 in
    sanitizer) line=$(grep -o "[a-z]*: =* [A-Z]* SUMMARY: .*" "$log" | tr -d = | paste -sd ";") ;;
    bench) line=$(grep -m 1 "kernels, torch" "$log") ;;
    profile) line="$(grep -c '^"[0-9]' "$OUT/profile.csv") launches" ;;
    esac
    cut -c 1-240 <<< "${line:-$(tail -n 1 "$log")}"
}

run() {
    local name=$1 limit=${SECONDS_FOR[$1]} start=$SECONDS outcome
    # SIGINT lets pytest, ncu and the benchmarks tell what they have so far.
    timeout --signal=INT --kill-after=5 "$limit" bash -o pipefail -c "$name" &> "$OUT/$name.log"
    case $? in
    0) outcome="ok" ;;
    "$SKIPPED") outcome="skipped" ;;
    124 | 137) outcome="stopped after $limit s" failed+=("$name") ;;
    *) outcome="failed" failed+=("$name") ;;
    esac
    echo "$name: $outcome, $((SECONDS - start)) s. $(result_of "$name")" | tee -a "$OUT/steps.txt"
    [[ ${failed[*]} != build ]] # nothing works without it
}

for step in $STEPS; do
    if [[ ! -v SECONDS_FOR[$step] ]]; then
        echo "gpu_check.sh: expected steps out of ${!SECONDS_FOR[*]}, got $step" >&2
        exit 2
    fi
done
card=$(nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2> /dev/null | head -n 1)
if [[ $card != *,* ]]; then
    echo "gpu_check.sh: expected a GPU, nvidia-smi finds none" >&2
    exit 3
fi
ARCHITECTURE=$(cut -d , -f 2 <<< "$card" | tr -d " ")
export ARCHITECTURE

mkdir -p "$OUT"
echo "$card" | tee "$OUT/steps.txt"
failed=()
for step in $STEPS; do
    [[ $step != table ]] || break
    run "$step" || break
done
for step in "${failed[@]}"; do
    printf '\n---- the end of %s\n' "$OUT/$step.log"
    tail -n 15 "$OUT/$step.log" | cut -c 1-240
done
[[ " $STEPS " != *" table "* ]] || { echo; table; }
exit $((${#failed[@]} > 0))

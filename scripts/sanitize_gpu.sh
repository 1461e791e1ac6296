#!/usr/bin/env bash
# scripts/sanitize_gpu.sh [TOOL...]: compute-sanitizer over the GPU tests and over two training steps (SmolLM2's shape, SF-Attn); all of
# memcheck, initcheck, racecheck and synccheck unless some are named. Stops at the first tool that finds something. Minutes a tool,
# racecheck half an hour.
# Programs: SINKLORA_BUILD (build-cuda). Left out: tests that time, that repeat for equal bits, or that are large.
#
# racecheck runs every case in a process of its own, RACE_JOBS (5) at a time; RACE_CASES: only those whose names it matches (a regular
# expression). Its reports on cuBLASLt's kernels (nvjet_*: split-K sums in shared memory) are counted and do not make it fail; they cannot
# be filtered out beforehand: with any --kernel-name filter, compute-sanitizer 2025.3 dies of an internal error at the first bf16 product
# of cuBLASLt, and reports that as one hazard. Left out: what runs attention on Hopper's tensor cores, of whose backward racecheck reports the shared d_q tile,
# which one half of a block writes and the other reads between barriers of all its threads, also when each of these is __syncthreads().
set -euo pipefail
export SINKLORA_QUICK_TESTS=1 # every case once, without its largest shapes
cd "$(dirname "$0")/.."
build=${SINKLORA_BUILD:-build-cuda}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
left_out='*timing*,*same bits on every run*,*long sequences*,*too much memory*,*2^31*'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

race_case() { # NAME: its report goes to a file, its verdict to standard output
  local file begun=$SECONDS code=0 verdict=ok
  file=$work/$(printf %s "$1" | tr -c 'a-zA-Z0-9' _ | cut -c1-80)
  "$sanitizer" --tool racecheck --racecheck-report hazard --print-limit 0 "$build/sinklora_gpu_tests" -tc="${1//,/\\,}" >"$file" 2>&1 </dev/null || code=$?
  # A hazard is told by two lines "... Thread (...) at KERNEL+0x..."; warp-level reports name the kernel likewise.
  local kernels
  kernels=$(sed -n 's/.*\(Read\|Write\) Thread .* at \(.*\)+0x.*/\2/p' "$file" | sort | uniq -c | sort -rn || true)
  if grep -q 'Internal Sanitizer Error' "$file"; then
    verdict='FAILED: the sanitizer itself did'
  elif ! grep -q 'RACECHECK SUMMARY' "$file"; then
    verdict='FAILED: not run to its end'
  elif grep -qv nvjet_ <<<"${kernels:-nvjet_}" || { [ -z "$kernels" ] && ! grep -q 'SUMMARY: 0 hazards' "$file"; }; then
    verdict='FAILED: hazards'
  elif ((code != 0)) || grep -q 'test cases: *0 ' "$file"; then
    verdict="FAILED: exit code $code"
  fi
  printf '%-60.60s %4d s  %s%s\n' "$1" $((SECONDS - begun)) "$verdict" \
    "$(awk '/nvjet_/ { n += $1 } END { if (n) print ", reports on kernels of cuBLASLt: " n / 2 }' <<<"$kernels")"
  [ "$verdict" = ok ] || { echo "$kernels" && tail -n 30 "$file" && return 1; }
}

racecheck() {
  export -f race_case
  export sanitizer build work
  # shellcheck disable=SC2016 # $1 is the inner shell's
  "$build/sinklora_gpu_tests" -ltc -tce="$left_out,*GPU attention in bf16*,bf16 on the GPU*,recompute*,two training*,nccl*" | grep -v '^\[doctest\]\|^===' | grep -E "${RACE_CASES:-.}" |
    xargs -d '\n' -P "${RACE_JOBS:-5}" -I{} bash -c 'race_case "$1"' _ {}
}

[ $# -gt 0 ] || set -- memcheck initcheck racecheck synccheck
for tool in "$@"; do
  echo "== $tool: the operations"
  if [ "$tool" = racecheck ]; then
    racecheck
    continue
  fi
  check() { "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 5 "$@"; }
  check "$build/sinklora_gpu_tests" -tce="$left_out"
  echo "== $tool: two training steps"
  check "$build/sinklora" bench step --shape smollm2-135m --context 300 --batch 2 --attention sf --recompute block --offload --warmup 0 --steps 2
done
echo "sanitizers: $*: no error"

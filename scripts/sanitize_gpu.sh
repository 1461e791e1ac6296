#!/usr/bin/env bash
# scripts/sanitize_gpu.sh [TOOL...]: compute-sanitizer over the GPU tests and over two training steps (SmolLM2's shape, SF-Attn); all of
# memcheck, initcheck, racecheck and synccheck unless some are named. Stops at the first tool that finds something. Minutes a tool.
# Programs: SINKLORA_BUILD (build-cuda). Left out: tests that time, that repeat for equal bits, or that are large.
#
# racecheck is kept from cuBLASLt's kernels (nvjet), of whose split-K sums it reports some. It leaves out attention on Hopper's tensor cores: of its backward it reports the shared d_q tile, which one half of a block writes
# and the other reads between barriers of all its threads; it does so too when each of these barriers is __syncthreads().
set -euo pipefail
cd "$(dirname "$0")/.."
build=${SINKLORA_BUILD:-build-cuda}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ $# -gt 0 ] || set -- memcheck initcheck racecheck synccheck
for tool in "$@"; do
  options=(--error-exitcode 9 --print-limit 5)
  [ "$tool" != racecheck ] || options+=(--kernel-name-exclude kernel_substring=nvjet)
  check() { "$sanitizer" --tool "$tool" "${options[@]}" "$@"; }
  left_out='*timing*,*every run*,*long sequences*,*too much memory*,*2^31*'
  [ "$tool" != racecheck ] || left_out+=',GPU attention*,attention*,*model*,*on the GPU*,recompute*,two training*'
  echo "== $tool: the operations"
  check "$build/sinklora_gpu_tests" -tce="$left_out"
  [ "$tool" != racecheck ] || continue
  echo "== $tool: two training steps"
  check "$build/sinklora" bench step --shape smollm2-135m --context 300 --batch 2 --attention sf --recompute block --offload --warmup 0 --steps 2
done
echo "sanitizers: $*: no error"

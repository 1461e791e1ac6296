#!/usr/bin/env bash
# scripts/sanitize_gpu.sh [TOOL...]: compute-sanitizer over the GPU tests and over two training steps (SmolLM2's shape, SF-Attn); all of
# memcheck, initcheck, racecheck and synccheck unless some are named. Stops at the first tool that finds something. Minutes a tool.
# Programs: SINKLORA_BUILD (build-cuda). Left out: tests that time, that repeat for equal bits, or that are large by intent.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${SINKLORA_BUILD:-build-cuda}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ $# -gt 0 ] || set -- memcheck initcheck racecheck synccheck
for tool in "$@"; do
  check() { "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 5 "$@"; }
  echo "== $tool: the operations"
  check "$build/sinklora_gpu_tests" -tce='*timing*,*every run*,*long sequences*,*too much memory*,*2^31*'
  echo "== $tool: two training steps"
  check "$build/sinklora" bench step --shape smollm2-135m --context 700 --batch 2 --attention sf --recompute block --offload --warmup 0 --steps 2
done
echo "sanitizers: $*: no error"

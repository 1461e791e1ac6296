#!/usr/bin/env bash
# scripts/sanitize_gpu.sh [TOOL...]: compute-sanitizer over the GPU tests and over two training steps (SmolLM2's shape, SF-Attn); all of
# memcheck, initcheck, racecheck and synccheck unless some are named. Stops at the first tool that finds something. Minutes a tool.
# Programs: SINKLORA_BUILD (build-cuda); for racecheck SINKLORA_RACECHECK_BUILD, a build with CUDAFLAGS=-DSINKLORA_RACECHECK, made here
# unless it is named (kernels/cuda/tensor_core.cuh says why). Left out: tests that time, that repeat for equal bits, or that are large.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ $# -gt 0 ] || set -- memcheck initcheck racecheck synccheck
programs=${SINKLORA_BUILD:-build-cuda}
for tool in "$@"; do
  if [ "$tool" = racecheck ]; then
    build=${SINKLORA_RACECHECK_BUILD:-build-racecheck}
    [ -x "$build/sinklora_gpu_tests" ] || {
      CUDAFLAGS=-DSINKLORA_RACECHECK cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DSINKLORA_CUDA=ON
      cmake --build "$build" --parallel "$(nproc)" --target sinklora sinklora_gpu_tests
    }
  else
    build=$programs
  fi
  check() { "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 5 "$@"; }
  echo "== $tool: the operations"
  check "$build/sinklora_gpu_tests" -tce='*timing*,*every run*,*long sequences*,*too much memory*,*2^31*'
  echo "== $tool: two training steps"
  check "$build/sinklora" bench step --shape smollm2-135m --context 700 --batch 2 --attention sf --recompute block --offload --warmup 0 --steps 2
done
echo "sanitizers: $*: no error"

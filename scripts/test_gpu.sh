#!/usr/bin/env bash
# Builds with CUDA and runs the tests that need a GPU; arguments go to them (-tc="*attention*", --help).
set -euo pipefail
cd "$(dirname "$0")/.."
compiler=$(scripts/find_nvcc.sh) || {
  echo "test-gpu: no nvcc here; install the CUDA toolkit, or put its bin folder on PATH" >&2
  exit 1
}
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "test-gpu: no GPU is visible (nvidia-smi lists none); 'make test' runs everything that needs none" >&2
  exit 1
fi
CUDACXX=$compiler scripts/build.sh cuda sinklora_gpu_tests
exec build-cuda/sinklora_gpu_tests "$@"

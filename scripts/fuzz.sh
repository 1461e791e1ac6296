#!/usr/bin/env bash
# scripts/fuzz.sh [SECONDS]: builds every test/fuzz/fuzz_*.cpp under the sanitizers and runs each one for SECONDS
# (60), as many at a time as there are cores. Seeds are test/fuzz/corpus/X and golden files of the tests. An input that
# breaks a target is kept in build-fuzz/found/.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
targets=(test/fuzz/fuzz_*.cpp)
scripts/setup.sh --dev
scripts/build.sh fuzz fuzz_targets
mkdir -p build-fuzz/found

run_target() {
  local target=$1 seconds=$2 name=${1#fuzz_} seeds=() golden=()
  mkdir -p "build-fuzz/corpus/$name"
  [ -d "test/fuzz/corpus/$name" ] && seeds=("test/fuzz/corpus/$name")
  case $name in
    adapter_config) golden=(test/golden/peft/*/adapter_config.json) ;;
    config) golden=(test/golden/peft/base*/config.json) ;;
    safetensors) golden=(test/golden/safetensors/*.safetensors) ;;
  esac
  [ ${#golden[@]} = 0 ] || seeds+=("-seed_inputs=$(IFS=, && echo "${golden[*]}")")
  if "build-fuzz/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="build-fuzz/found/$name-" "build-fuzz/corpus/$name" "${seeds[@]}" >"build-fuzz/$target.log" 2>&1; then
    echo "fuzz: $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "build-fuzz/$target.log") inputs, none broke it"
  else
    tail -n 40 "build-fuzz/$target.log"
    echo "fuzz: $target FAILED; the input is in build-fuzz/found/, the log in build-fuzz/$target.log"
    return 1
  fi
}
export -f run_target
# shellcheck disable=SC2016  # the inner shell expands its own arguments
printf '%s\n' "${targets[@]}" | sed 's|.*/||; s|\.cpp$||' |
  xargs -P "$(nproc)" -I TARGET bash -c 'run_target TARGET "$1"' _ "$seconds"

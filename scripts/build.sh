#!/usr/bin/env bash
# scripts/build.sh PRESET [TARGET...]: sets up, configures once and builds one preset of CMakePresets.json.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
scripts/setup.sh
folder=build
[ "$preset" = release ] || folder=build-$preset
if [ ! -f "$folder/build.ninja" ] && [ ! -f "$folder/Makefile" ]; then
  command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja
  cmake --preset "$preset"
fi
cmake --build "$folder" --parallel "$(nproc)" ${1:+--target "$@"}

#!/usr/bin/env bash
# Installs the Debian packages that sinklora is built from, where one is missing. Says nothing when none is.
#   scripts/setup.sh          what `make build`, `make test` and `make demo` need
#   scripts/setup.sh --dev    also what fuzzing, linting and try_fresh_debian.sh need, and ccache: presets share what they compile alike
# Debian 12; Ubuntu 24.04 has the same names.
set -euo pipefail

packages=(g++ make cmake ninja-build pkg-config
  libopenblas-openmp-dev libhdf5-dev libsentencepiece-dev libpcre2-dev
  libfmt-dev nlohmann-json3-dev libcli11-dev libxxhash-dev libssl-dev
  doctest-dev)
case "${1-}" in
  --dev) packages+=(ccache clang-14 libclang-rt-14-dev libomp-14-dev clang-format-14 clang-tidy-14 debootstrap) ;;
  "") ;;
  *) echo "usage: scripts/setup.sh [--dev]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "setup: no Debian here; the build wants the counterparts of: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=absent
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
  as_root=(sudo)
else
  echo "setup: packages are missing; as root run: apt-get update && $install" >&2
  exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq -o Acquire::Retries=3
# shellcheck disable=SC2086  # $install is a command line
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 >/dev/null

#!/usr/bin/env bash
# Does `make TARGET` work on a fresh Debian 12? Makes one with debootstrap (make, git and ca-certificates only), clones
# the committed tree into it and runs the target there. Needs root, a Debian mirror and about 3 GB of disk.
#   scripts/try_fresh_debian.sh test|demo [FOLDER]
# FOLDER (build-fresh) takes the new root, which is removed on success, and the log TARGET.log. MIRROR=URL picks another mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1-}
case $target in test | demo) ;; *) echo "usage: scripts/try_fresh_debian.sh test|demo [FOLDER]" >&2; exit 2 ;; esac
folder=$(realpath -m "${2:-build-fresh}")
mirror=${MIRROR:-http://deb.debian.org/debian}
[ "$(id -u)" = 0 ] || { echo "try_fresh_debian: needs root (debootstrap and chroot)" >&2; exit 1; }
command -v debootstrap >/dev/null || scripts/setup.sh --dev
[ -z "$(git status --porcelain)" ] || echo "try_fresh_debian: only what is committed is tried"

root=$folder/root
mkdir -p "$folder"
[ ! -e "$root" ] || { echo "try_fresh_debian: $root exists already; remove it first" >&2; exit 1; }

try() {
  date -u '+begun %F %T UTC'
  git log -1 --format='commit %h %s'
  debootstrap --variant=minbase --include=make,git,ca-certificates bookworm "$root" "$mirror" >"$folder/debootstrap.log" 2>&1 ||
    { tail -n 20 "$folder/debootstrap.log"; return 1; }
  cp -L /etc/resolv.conf "$root/etc/resolv.conf" || return 1
  git clone -q "$PWD" "$root/sinklora" || return 1
  echo "try_fresh_debian: the root is ready after $SECONDS s; make $target"
  local start=$SECONDS
  # The mounts live in a mount namespace of their own and go with it, whatever happens.
  # shellcheck disable=SC2016  # the inner shell expands its own arguments
  unshare --mount --pid --fork bash -c '
    set -e
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    mount --make-rslave "$0/dev"
    mount -t tmpfs tmpfs "$0/tmp"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$0" make -C /sinklora "$1"' \
    "$root" "$target" || return 1
  echo "try_fresh_debian: make $target took $((SECONDS - start)) s, set-up and cold build included"
}

try 2>&1 | tee "$folder/$target.log" || {
  echo "try_fresh_debian: make $target FAILED; see $folder/$target.log and $root" | tee -a "$folder/$target.log"
  exit 1
}
rm -rf --one-file-system "$root"
echo "try_fresh_debian: make $target passed; log: $folder/$target.log"

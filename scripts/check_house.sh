#!/usr/bin/env bash
# The house rules that a machine can check. Prints every breach; fails if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
breaches=$(mktemp)
trap 'rm -f "$breaches"' EXIT
say() { echo "$1" | tee -a "$breaches"; }
mapfile -t sources < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

# Includes go down the floors only.
floors=(base comm kernels data model infer eval train bench cli)
for level in "${!floors[@]}"; do
  for above in "${floors[@]:level+1}"; do
    while read -r line; do say "include goes up: $line"; done < <(
      git grep -n "#include \"$above/" -- "${floors[level]}/" || true)
  done
done
while read -r line; do say "only kernels/ and comm/nccl_* know CUDA: $line"; done < <(
  git grep -nE '#include <(cuda|cublas|nccl)' -- "${floors[@]}" ':!kernels' ':!comm/nccl_*' || true)

# Sizes. A kernel's nature may forbid a short function, so kernels/cuda is let off that rule; so are tests, which read top to bottom.
for file in "${sources[@]}" $(git ls-files '*.py' '*.sh'); do
  lines=$(wc -l <"$file")
  [ "$lines" -lt 600 ] || say "$file: $lines lines, wanted fewer than 600"
done
for file in "${sources[@]}"; do
  case $file in kernels/cuda/* | test/*) continue ;; esac  # test cases hold raw strings with braces of their own
  # A function is an opening brace whose enclosing braces are all of namespaces and types.
  while read -r line; do say "$line"; done < <(awk -v file="$file" '
    { gsub(/"([^"\\]|\\.)*"/, "\"\""); gsub(/\047[{}]\047/, ""); sub(/\/\/.*/, "") }
    {
      type = /^ *(template *<.*> *)?(inline )?(namespace|struct|class|enum|union|extern)/ || /= *\{/
      for (i = 1; i <= length($0); ++i) {
        c = substr($0, i, 1)
        if (c == "{") {
          if (!type && !code) { code = depth + 1; start = NR }
          ++depth
        } else if (c == "}") {
          if (code == depth) {
            if (NR - start >= 80) printf "%s:%d: a function of %d lines, wanted at most 80\n", file, start, NR - start + 1
            code = 0
          }
          --depth
        }
      }
    }
    END { if (depth) printf "%s: check_house cannot pair its braces\n", file }' "$file")
done
while read -r size file; do
  limit=1048576
  case $file in assets/*) limit=3145728 ;; esac
  [ "$size" -le $limit ] || say "$file: $size bytes, tracked files have at most $limit"
done < <(git ls-files -z | xargs -0 -r stat -c '%s %n')

# Nothing left for later.
while read -r line; do say "left for later: $line"; done < <(
  git grep -nwE 'TODO|FIXME|XXX' -- . ':!scripts/check_house.sh' || true)

if command -v clang-format-14 >/dev/null && [ ${#sources[@]} -gt 0 ]; then
  for file in "${sources[@]}"; do
    clang-format-14 --dry-run -Werror "$file" 2>/dev/null || say "$file: run 'make format'"
  done
fi
if command -v shellcheck >/dev/null; then
  mapfile -t shells < <(git ls-files '*.sh' .ci/run)
  shellcheck "${shells[@]}" || say "shellcheck has complaints"
fi

if [ -s "$breaches" ]; then
  echo "check_house: $(wc -l <"$breaches") breaches of the house rules"
  exit 1
fi
echo "check_house: ${#sources[@]} sources, no breach"

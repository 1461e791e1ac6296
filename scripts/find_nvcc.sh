#!/usr/bin/env bash
# Prints the path of nvcc; fails where there is none.
command -v nvcc && exit 0
for compiler in "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
  [ -x "$compiler" ] && echo "$compiler" && exit 0
done
exit 1

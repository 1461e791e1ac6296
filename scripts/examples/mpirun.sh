#!/usr/bin/env bash
# Two nodes of 8 GPUs with Open MPI's mpirun, which only starts the processes: MPI itself is not used.
#   HOSTS=node1:8,node2:8 scripts/examples/mpirun.sh
# Rank 0 runs on the first host and listens there; the port must be free and open between the nodes. Hydra
# (MPICH, Intel MPI) takes `-ppn 8 -hosts node1,node2 -genv NAME VALUE` in place of --host and -x.
set -euo pipefail

hosts=${HOSTS:-node1:8,node2:8}
first=${hosts%%[:,]*}
ranks=${RANKS:-16} model=${MODEL:-llama-2-7b} data=${DATA:-shards} out=${OUT:-run}

exec mpirun -np "$ranks" --host "$hosts" --map-by slot --bind-to none \
  -x SINKLORA_INIT="tcp://$first:${PORT:-29500}" -x SINKLORA_NONCE="$(date +%s)-$$" \
  sinklora train --device cuda --precision bf16 --model "$model" --data "$data" --out "$out" \
  --context 8192 --batch 1 --accumulate 1 --steps 1000 --save-every 100

#!/usr/bin/env bash
# 8 nodes of 8 GPUs under Slurm: srun starts a process per GPU, and each reads its rank from Slurm's variables.
# Submit it from the folder of the run: sbatch scripts/examples/slurm.sh. --out lies where all nodes see it.
#SBATCH --job-name=sinklora
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

model=${MODEL:-llama-2-7b} data=${DATA:-shards} out=${OUT:-run}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-12}

# 300 s before the end of its time the job gets TERM: all ranks stop after the same step, rank 0 saves, and the
# code is 75. The job is put back into the queue and goes on from there.
code=0
srun --kill-on-bad-exit=0 sinklora train --device cuda --precision bf16 --model "$model" --data "$data" --out "$out" \
  --context 8192 --batch 1 --accumulate 1 --steps 1000 --save-every 100 || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/bin/bash
# sbatch examples/accelerate/slurm.sh audio/as2m_base data.dataset=... output_dir=...
# Ten minutes before its time is up the job is told to stop: it saves, ends, and is put in the queue again.
#SBATCH --job-name=bridle
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500
export WORLD_SIZE=$SLURM_NTASKS
recipe=$1; shift
output=$(printf '%s\n' "$@" | sed -n 's/^output_dir=//p')
: "${output:?give output_dir=... after the recipe: the job is queued again until it holds the finished run}"
srun --kill-on-bad-exit=1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE exec python "$@"' -- \
    examples/pretrain.py --recipe "$recipe" "$@"
[ -e "$output/final/config.json" ] || scontrol requeue "$SLURM_JOB_ID"

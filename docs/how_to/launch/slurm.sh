#!/bin/bash
# sbatch slurm.sh RECIPE RUN      RUN lies on a file system that all nodes share
#SBATCH --job-name=lifelong
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -eo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 8))
export HF_HUB_OFFLINE=1   # compute nodes often have no network: fetch checkpoints and data sets beforehand

# one launcher a node; it starts a process a device and ends all of them when one ends
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m lifelong run "$1" --out "$2"

#!/bin/bash
# A Ray cluster inside one Slurm allocation, with the controller on its first node:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 docker/slurm.sh sweeps/full_grid.yaml
# First export XSWEEP_DB (PostgreSQL), XSWEEP_STORE and XSWEEP_DATA_HOME (folders that all nodes mount).
#SBATCH --job-name=xsweep
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@300
set -euo pipefail
: "${XSWEEP_DB:?PostgreSQL; nodes cannot share SQLite}" "${XSWEEP_STORE:?}" "${1:?a grid file}"

port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS="$head:$port" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN_PATH="$HOME/.xsweep-ray-token-$SLURM_JOB_ID"
(umask 077 && openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --port="$port" --block &
sleep 20   # a worker that starts before the head gives up
workers=$((SLURM_JOB_NUM_NODES - 1))
if [ "$workers" -gt 0 ]; then
  srun --nodes="$workers" --ntasks="$workers" --exclude="$head" --overlap \
    ray start --address="$RAY_ADDRESS" --block &
fi

xsweep submit "$1" --no-start
xsweep run --until-idle &
controller=$!
# Slurm warns five minutes before the end: running jobs save and return to ready.
trap 'kill -TERM "$controller"' TERM
wait "$controller" || wait "$controller"

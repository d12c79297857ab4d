#!/bin/bash
# A Ray cluster inside one Slurm allocation, with the controller on its first node:
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 docker/slurm.sh sweeps/full_grid.yaml
# First export XSWEEP_DB (PostgreSQL), XSWEEP_STORE and XSWEEP_DATA_HOME (folders that all nodes mount).
# Before the time limit running jobs save, and the allocation goes back into the queue until nothing is left.
#SBATCH --job-name=xsweep
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${XSWEEP_DB:?PostgreSQL; nodes cannot share SQLite}" "${XSWEEP_STORE:?}" "${1:?a grid file}"
PATH="$(dirname "$(command -v xsweep)"):$PATH"

stopped='' controller=''
trap 'stopped=yes; [ -z "$controller" ] || kill -TERM "$controller"' TERM

# Several allocations may lie on one node: each Ray has its own ports and its own short folder.
draw() {
  python -c "
from ray.util import get_node_ip_address
from xsweep.orchestrator.runtime.ray_cluster import NODE_PORTS, free_port, free_ports, node_options
print(*$1)"
}
export -f draw
export head port folder
# The script runs on the first node, and so does task 0. Its name may mean 127.0.1.1 here.
read -r head port < <(draw '(get_node_ip_address(), free_port())')
folder="/tmp/xsweep-$SLURM_JOB_ID"
export RAY_ADDRESS="$head:$port" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_START_HOOK=xsweep.orchestrator.runtime.ray_cluster.disable_client_server
export RAY_AUTH_TOKEN_PATH="$HOME/.xsweep-ray-token-$SLURM_JOB_ID"
(umask 077 && openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH")

# Nothing runs on Ray by then: an orderly end would wait 30 s for a head that is gone.
end() {
  set +e   # where a part of it has ended already, the rest goes on
  scancel --signal=KILL "$SLURM_JOB_ID.0"
  wait "$nodes"
  srun --overlap rm -rf "$folder"
  rm -f "$RAY_AUTH_TOKEN_PATH"
}

answers() { (exec 3<> "/dev/tcp/$head/$port") 2> /dev/null; }
export -f answers
# shellcheck disable=SC2016
srun --overlap --output="ray-$SLURM_JOB_ID-%N.log" --open-mode=append \
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash -c '
  trap "rm -rf \"$folder\"" EXIT
  if [ "$SLURM_PROCID" = 0 ]; then
    ray start --head --port="$port" --temp-dir="$folder" --block \
      $(draw "node_options(free_ports([\"dashboard-port\", *NODE_PORTS]))")
  else
    until answers; do sleep 1; done
    ray start --address="$RAY_ADDRESS" --block $(draw "node_options(free_ports(NODE_PORTS))")
  fi' &
nodes=$!
trap end EXIT
until answers; do
  kill -0 "$nodes" || { echo "Ray's head did not start on $head" >&2; exit 3; }
  sleep 1
done

xsweep submit "$1" --no-start
code=143
if [ -z "$stopped" ]; then
  xsweep run &
  controller=$!
  # The first wait ends with Slurm's warning, the second when running jobs have saved.
  wait "$controller" && code=0 || code=$?
  [ -z "$stopped" ] || { wait "$controller" && code=0 || code=$?; }
fi
if [ -n "$stopped" ] && [ "$code" = 143 ]; then
  echo "time is up: queueing again"
  trap - EXIT
  end
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

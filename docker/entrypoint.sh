#!/bin/sh
# Entry point of the image; tests/cluster runs it on hosts without a container engine.
#   entrypoint.sh head                     Ray's head; runs no jobs
#   entrypoint.sh worker [RAY OPTIONS]     a node for jobs, joining the head at $RAY_ADDRESS
#   entrypoint.sh controller [RUN OPTIONS] the controller, beside a Ray node without resources
#   entrypoint.sh COMMAND…                 any other command, unchanged
# Each role exits when its part of the cluster ends, so that the engine restarts it.
set -eu
: "${RAY_AUTH_MODE:=token}" "${RAY_USAGE_STATS_ENABLED:=0}"
# Otherwise Ray exposes all GPUs to tasks that requested none.
: "${RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:=1}"
export RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO
# Jobs exchange files, not objects. Ray would take 30% of the memory, more than /dev/shm has.
object_store_bytes=134217728

require_token() {
  [ -s "${RAY_AUTH_TOKEN_PATH:-/dev/null}" ] || [ -n "${RAY_AUTH_TOKEN:-}" ] || {
    echo "entrypoint: set RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN: anyone who reaches" \
      "a Ray cluster without a token can run code on it" >&2
    exit 3
  }
}

require_driver() {
  # Otherwise each job finds out for itself. nvidia-smi comes with the driver.
  ! command -v nvidia-smi >/dev/null || [ "${CUDA_VISIBLE_DEVICES-0}" = "" ] \
    || python3 -c 'import torch; torch.version.cuda and torch.cuda.init()' || {
    echo "entrypoint: PyTorch cannot use the GPUs here (its last words are above): torch 2.13 of PyPI" \
      "needs an NVIDIA driver of version 580 or newer, see nvidia-smi" >&2
    exit 3
  }
}

role="${1:-}"
[ $# -eq 0 ] || shift
case "$role" in
  head)
    require_token
    exec ray start --head --block --port="${RAY_PORT:-6379}" --num-cpus=0 --num-gpus=0 \
      --dashboard-host="${RAY_DASHBOARD_HOST:-127.0.0.1}" \
      --object-store-memory="$object_store_bytes" --disable-usage-stats "$@"
    ;;
  worker)
    require_token
    require_driver
    exec ray start --address="${RAY_ADDRESS:?host:port of the head}" --block \
      --object-store-memory="$object_store_bytes" --disable-usage-stats "$@"
    ;;
  controller)
    require_token
    # A Ray driver connects only from a host with a Ray node; this node has no resources for jobs.
    [ "${XSWEEP_NODE_RUNS:-0}" = 1 ] || ray start --address="${RAY_ADDRESS:?host:port of the head}" \
      --num-cpus=0 --num-gpus=0 --object-store-memory="$object_store_bytes" --disable-usage-stats
    exec xsweep run "$@"
    ;;
  *)
    exec "$role" "$@"
    ;;
esac

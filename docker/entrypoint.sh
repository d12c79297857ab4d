#!/bin/sh
# What a container of the image does; tests/cluster runs the same lines on hosts without an engine.
#   entrypoint.sh head                     Ray's head, which runs no jobs
#   entrypoint.sh worker [RAY OPTIONS]     a node that runs jobs, of the head at $RAY_ADDRESS
#   entrypoint.sh controller [RUN OPTIONS] the controller, with a node of its own that runs no jobs
#   entrypoint.sh COMMAND…                 anything else, as it is
# Each ends when its part of the cluster ends, so that the engine starts it again.
set -eu
: "${RAY_AUTH_MODE:=token}" "${RAY_USAGE_STATS_ENABLED:=0}"
# Ray would otherwise show all GPUs to work that asked for none.
: "${RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:=1}"
export RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO

require_token() {
  [ -s "${RAY_AUTH_TOKEN_PATH:-/dev/null}" ] || [ -n "${RAY_AUTH_TOKEN:-}" ] || {
    echo "entrypoint: set RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN: whoever reaches a Ray" \
      "cluster without a token runs code on it" >&2
    exit 3
  }
}

role="${1:-}"
[ $# -eq 0 ] || shift
case "$role" in
  head)
    require_token
    exec ray start --head --block --port="${RAY_PORT:-6379}" --num-cpus=0 --num-gpus=0 \
      --dashboard-host="${RAY_DASHBOARD_HOST:-127.0.0.1}" --disable-usage-stats "$@"
    ;;
  worker)
    require_token
    exec ray start --address="${RAY_ADDRESS:?host:port of the head}" --block \
      --disable-usage-stats "$@"
    ;;
  controller)
    require_token
    # Ray lets a program in only where one of its nodes runs; this one offers nothing to jobs.
    [ "${XSWEEP_NODE_RUNS:-0}" = 1 ] || ray start --address="${RAY_ADDRESS:?host:port of the head}" \
      --num-cpus=0 --num-gpus=0 --disable-usage-stats
    exec xsweep run "$@"
    ;;
  *)
    exec "$role" "$@"
    ;;
esac

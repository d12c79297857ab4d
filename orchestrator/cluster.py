"""The Ray cluster: the one that `RAY_ADDRESS` names, else one started here that outlives us."""

import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

import psutil

from orchestrator.head import ensure_local, stop_local
from orchestrator.settings import Settings
from xsweep import SetupError

log = logging.getLogger("xsweep")

ANSWER_S = 10.0
AWAY_S = 45.0
"""A head that is back before this is taken for one that was never away."""


def connect(settings: Settings, *, namespace: str) -> str | None:
    """Connect this process to Ray and give the dashboard's URL; SetupError if Ray does not answer.

    `namespace` keeps the actors of different job tables on one cluster apart.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise leave CUDA_VISIBLE_DEVICES alone for work that asked for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if settings.ray_address:
        return _connect(settings.ray_address, namespace)
    return _connect(ensure_local(settings.home).address, namespace)


def disconnect(settings: Settings, *, stop: bool) -> None:
    """Leave Ray; `stop` also ends the cluster, if it is one that xsweep started here."""
    import ray

    ray.shutdown()
    if stop and not settings.ray_address:
        stop_local(settings.home)


def leave_without(head: str) -> None:
    """End this process, exit code 3, once nobody has answered at the head for `AWAY_S`.

    In a thread of its own: Ray's calls wait for the head, and after 60 s Ray ends the process
    itself, without a word of ours. Nothing is lost by that: jobs are the workers', and what is
    known of them is the database's.
    """

    def watch() -> None:
        host, _, port = head.rpartition(":")
        seen_s = time.monotonic()
        while time.monotonic() - seen_s < AWAY_S:
            time.sleep(ANSWER_S / 2)
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
                seen_s = time.monotonic()
        log.error(
            "leaving   no answer from Ray's head at %s for %.0f s: `xsweep run` goes on from here "
            "when it is back",
            head,
            AWAY_S,
        )
        logging.shutdown()
        os._exit(SetupError.exit_code)

    threading.Thread(target=watch, name="watches Ray's head", daemon=True).start()


def _connect(address: str, namespace: str) -> str | None:
    import ray

    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        # Ray itself goes on trying for minutes before it says that nobody is there.
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
        except OSError as error:
            raise SetupError(
                f"no Ray cluster answers at {address} ({error.strerror or error}): check "
                "RAY_ADDRESS, or leave it empty to have one started here"
            ) from error
        if not _has_a_node():
            raise SetupError(
                f"no Ray node runs on this machine, and a program reaches the cluster at {address} "
                "only through one: start it, `ray start --address=... --num-cpus=0 --num-gpus=0`"
            )
        if not _speaks_grpc(address):
            raise SetupError(
                f"what answers at {address} is no Ray head: check RAY_ADDRESS (a head's port is "
                "6379 unless it was started with another)"
            )
    try:
        context: Any = ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:
        # Ray raises many kinds here: ConnectionError, RuntimeError, its own.
        raise SetupError(explain(address, error)) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def explain(address: str, error: Exception) -> str:
    """Why Ray let nobody in, and what to do about it."""
    told = " ".join(str(error).split()) or type(error).__name__
    if "Version mismatch" in told:
        return (
            f"the Ray cluster at {address} is of another version ({told}): install the same Ray "
            "and Python here and there"
        )
    if type(error).__name__ == "AuthenticationError" or "token" in told.lower():
        return (
            f"no Ray cluster answers at {address}: it refuses this token; give the one that it was "
            "started with by RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        )
    return (
        f"no Ray cluster answers at {address} ({told[:300]}): check RAY_ADDRESS and the cluster's "
        "token (RAY_AUTH_TOKEN_PATH), or leave RAY_ADDRESS empty to have one started here"
    )


def _speaks_grpc(address: str) -> bool:
    """Whether the protocol of Ray's head is spoken there; Ray would try for five minutes."""
    import grpc

    if os.environ.get("RAY_USE_TLS") == "1":
        return True  # asked with certificates only, which Ray itself knows
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _has_a_node() -> bool:
    """Whether a Ray node runs on this machine: only through it Ray lets a program in."""
    return any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))

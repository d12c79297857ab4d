"""The Ray cluster: the one that `RAY_ADDRESS` names, else one started here that outlives us.

A cluster of our own runs as `ray start --block` in a session of its own, so that killing the
controller kills no job; the next controller finds it by `ray.json`. It listens with token
authentication, its dashboard on loopback only.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.settings import Settings
from xsweep import SetupError

log = logging.getLogger("xsweep")

START_TIMEOUT_S = 180.0
ANSWER_S = 10.0
AWAY_S = 45.0
"""A head that is back before this is taken for one that was never away."""
OBJECT_STORE_BYTES = 128 * 1024**2
"""Jobs exchange paths, not objects: Ray's default of 30% of the memory is better left to them."""

SECRETS = ("XSWEEP_DB", "XSWEEP_WEBHOOK", "PGPASSWORD")
"""Of the controller's environment: workers, who inherit the cluster's, have no use for them."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that xsweep started on this machine."""

    address: str
    dashboard: str
    pid: int
    started: float


def connect(settings: Settings, *, namespace: str) -> str | None:
    """Connect this process to Ray and give the dashboard's URL; SetupError if Ray does not answer.

    `namespace` keeps the actors of different job tables on one cluster apart.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise leave CUDA_VISIBLE_DEVICES alone for work that asked for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if settings.ray_address:
        return _connect(settings.ray_address, namespace)
    _use_own_token(settings.home)
    local = running_local(settings.home)
    if local is None:
        local = _start_local(settings.home)
    return _connect(local.address, namespace)


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


def running_local(home: Path) -> LocalCluster | None:
    """The cluster that xsweep started here earlier, if it still runs."""
    try:
        local = LocalCluster(**json.loads((home / "ray.json").read_text()))
        process = psutil.Process(local.pid)
        same = abs(process.create_time() - local.started) < 2  # pids are used again
        return local if same and _lives(process) else None
    except (OSError, ValueError, TypeError, psutil.Error):
        return None


def stop_local(home: Path, *, grace_s: float = 2.0) -> None:
    """End the cluster that xsweep started here, with everything that it runs."""
    local = running_local(home)
    if local is None:
        return
    head = psutil.Process(local.pid)
    processes = [*head.children(recursive=True), head]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + grace_s
        while any(map(_lives, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
    (home / "ray.json").unlink(missing_ok=True)


def _lives(process: psutil.Process) -> bool:
    # Where nobody reaps orphans (a container without an init), the dead stay listed as zombies.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _use_own_token(home: Path) -> None:
    token = home / "ray-token"
    home.mkdir(parents=True, exist_ok=True)
    if not token.exists():
        # Written under another name first: a reader never sees half a token.
        draft = home / f"ray-token.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        draft.rename(token)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _start_local(home: Path) -> LocalCluster:
    port, dashboard_port = _free_port(), _free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", str(port), "--dashboard-host", "127.0.0.1"),
        *("--dashboard-port", str(dashboard_port), "--include-log-monitor", "False"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"),
    ]
    (home / "logs").mkdir(exist_ok=True)
    log = home / "logs" / "ray.log"
    kept = {name: value for name, value in os.environ.items() if name not in SECRETS}
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env=kept,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SetupError(f"Ray did not start; its output is in {log}. Try: xsweep doctor")
        time.sleep(0.1)
    local = LocalCluster(
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        pid=process.pid,
        started=psutil.Process(process.pid).create_time(),
    )
    draft = home / f"ray.json.{os.getpid()}"
    draft.write_text(json.dumps(asdict(local)))
    draft.rename(home / "ray.json")
    return local


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""The Ray cluster: the one that `RAY_ADDRESS` names, else one started here that outlives us.

The Ray head that xsweep starts on this machine where no cluster is named.

It runs as `ray start --block` in a session of its own, so that killing the controller kills no job;
the next controller finds it by `ray.json`, which is written before Ray begins: a starter that is
killed meanwhile leaves nothing that nobody knows. It listens with token authentication, its
dashboard on loopback only.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from xsweep.errors import SetupError
from xsweep.evaluator.data.files import atomic_write
from xsweep.orchestrator.runtime.import_path import child_environment
from xsweep.orchestrator.settings import Settings

START_TIMEOUT_S = 180.0
KILLED_S = 30.0
"""How long a killed process may take to be gone: seconds, where the machine is busy."""


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
    up: bool = True
    """False: whoever started it has not seen it come up."""


def ensure_local(home: Path) -> LocalCluster:
    """The cluster that runs here, started if need be; this process gets its token.

    One that another process began and did not see through is waited for, and replaced if it does
    not come up. Raises SetupError where Ray does not start.
    """
    _use_own_token(home)
    local = running_local(home)
    if local and (local.up or _comes_up(home, local)):
        return local
    stop_local(home)
    return _start(home)


def running_local(home: Path) -> LocalCluster | None:
    """The cluster that xsweep started here earlier, if it still runs."""
    local = _noted(home)
    try:
        return local if local and _lives(_head_of(local)) else None
    except psutil.NoSuchProcess:
        return None


def stop_local(home: Path, *, grace_s: float = 2.0) -> None:
    """End the cluster that xsweep started here, with everything that it runs or left."""
    local = _noted(home)
    if local is None:
        return
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILLED_S)):
        # Looked for each time: a cluster that still starts has more of them by now.
        processes = _processes_of(local)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + patience_s
        while any(map(_lives, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
    (home / "ray.json").unlink(missing_ok=True)


def _noted(home: Path) -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads((home / "ray.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _note(home: Path, local: LocalCluster) -> None:
    with atomic_write(home / "ray.json") as draft:
        draft.write_text(json.dumps(asdict(local)))


def _head_of(local: LocalCluster) -> psutil.Process:
    """Raises psutil.NoSuchProcess where it is gone, and where its pid is another's by now."""
    process = psutil.Process(local.pid)
    if abs(process.create_time() - local.started) >= 2:
        raise psutil.NoSuchProcess(local.pid)
    return process


def _processes_of(local: LocalCluster) -> list[psutil.Process]:
    """What a cluster has running, its head last; the head itself may have been killed."""
    found: list[psutil.Process] = []
    try:
        head: list[psutil.Process] = [_head_of(local)]
        found += head[0].children(recursive=True)
    except psutil.NoSuchProcess:
        if psutil.pid_exists(local.pid):
            return []
        head = []
    # A session keeps its number from being used again as long as anything runs in it.
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == local.pid:
                found.append(process)
    return [*(process for process in dict.fromkeys(found) if process not in head), *head]


def _lives(process: psutil.Process) -> bool:
    # Where nobody reaps orphans (a container without an init), the dead stay listed as zombies.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _use_own_token(home: Path) -> None:
    token = home / "ray-token"
    if not token.exists():
        with atomic_write(token) as draft:
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _start(home: Path) -> LocalCluster:
    port, dashboard_port = _free_port(), _free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", str(port), "--dashboard-host", "127.0.0.1"),
        *("--dashboard-port", str(dashboard_port), "--include-log-monitor", "False"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"),
    ]
    # It waits for a word that it is noted; whoever dies before gives none, and nothing is left.
    when_noted = ["/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh", *command]
    log = _log_of(home)
    log.parent.mkdir(exist_ok=True)
    kept = {name: value for name, value in child_environment().items() if name not in SECRETS}
    kept["RAY_START_HOOK"] = f"{__name__}.{without_client_server.__name__}"
    with log.open("w") as out:
        process = subprocess.Popen(
            when_noted,
            env=kept,
            stdout=out,
            stderr=out,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    local = LocalCluster(
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        pid=process.pid,
        started=psutil.Process(process.pid).create_time(),
        up=False,
    )
    _note(home, local)
    assert process.stdin
    process.stdin.write(b"noted\n")
    process.stdin.close()
    if not _comes_up(home, local):
        stop_local(home)
        raise SetupError(f"Ray did not start; its output is in {log}. Try: xsweep doctor")
    return local


def without_client_server(parameters: Any, head: bool) -> None:
    """Ray's hook at the start of a head: port 10001 of every interface stays closed."""
    parameters.ray_client_server_port = None


def _comes_up(home: Path, local: LocalCluster) -> bool:
    """Wait for a cluster that has been begun, and note that it is there; False: it is not."""
    while "Ray runtime started" not in _log_of(home).read_text(errors="replace"):
        if running_local(home) is None or time.time() - local.started > START_TIMEOUT_S:
            return False
        time.sleep(0.1)
    _note(home, replace(local, up=True))
    return True


def _log_of(home: Path) -> Path:
    return home / "logs" / "ray.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def probe(settings: Settings) -> tuple[str | None, dict[str, float]]:
    """Connect, and give the dashboard's URL and the cluster's resources by Ray's names."""
    import ray

    dashboard = connect(settings, namespace="xsweep-doctor")
    resources = ray.cluster_resources()
    ray.shutdown()
    return dashboard, resources


def exit_if_head_lost(head: str) -> None:
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
        # Ray puts the working folder ahead of everything in the workers' import path.
        with contextlib.chdir(sys.prefix):
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

"""The Ray head that xsweep starts on this machine where no cluster is named.

It runs as `ray start --block` in a session of its own, so that killing the controller kills no job;
the next controller finds it by `ray.json`, which is written before Ray begins: a starter that is
killed meanwhile leaves nothing that nobody knows. It listens with token authentication, its
dashboard on loopback only.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from evaluator.files import atomic_write
from xsweep import SetupError

START_TIMEOUT_S = 180.0
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
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Looked for each time: a cluster that still starts has more of them by now.
        processes = _processes_of(local)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + grace_s
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
    kept = {name: value for name, value in os.environ.items() if name not in SECRETS}
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

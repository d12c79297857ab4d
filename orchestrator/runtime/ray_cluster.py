"""The Ray cluster: the one at `RAY_ADDRESS`, else one started here that outlives this process.

A cluster started here runs as `ray start --block` in a session of its own, so killing the
controller kills no job. The next controller finds it by `ray-HOST.json`, which is written before
Ray begins: a starter that is killed meanwhile leaves nothing behind that is not recorded. It
requires a token and listens on loopback only. Other clusters, hosts with the same home, users and
sweeps on this machine do not disturb it: its ports and its temporary folder are its own.
"""

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from xsweep.errors import SetupError
from xsweep.evaluator.data.files import atomic_write
from xsweep.orchestrator.runtime.import_path import child_environment
from xsweep.orchestrator.settings import SECRETS, Settings

log = logging.getLogger("xsweep")

START_TIMEOUT_S = 180.0

NODE_START_S = 15.0
"""Time for a node on this machine to start: a head answers before its own node is there."""

KILLED_S = 30.0
"""Time for a killed process to disappear on a busy machine."""

ANSWER_S = 10.0
"""Time for a head to answer."""

AWAY_S = 45.0
"""Time without an answer after which a head is lost."""

LOOPBACK = "127.0.0.1"

MOST_TEMPORARY_BYTES = 36
"""Length of a folder under which Ray's longest socket still has a path that Linux takes."""

MANY_HOSTS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch, off on those systems: a single machine's servers listen on loopback alone."""

CGROUPS = Path("/sys/fs/cgroup")

OBJECT_STORE_BYTES = 128 * 1024**2
"""Jobs exchange paths, not objects: Ray's default, 30% of the memory, would be wasted."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that xsweep started on this machine."""

    address: str
    dashboard: str
    boot: str
    """Boot and container in which the process number is valid, see `_boot`."""
    pid: int
    started: float
    up: bool = True
    """False: its starter has not seen it come up."""
    folder: str = ""
    """Ray's temporary folder, of this cluster alone."""


def connect(settings: Settings, *, namespace: str) -> str | None:
    """Connect this process to Ray, starting a cluster if needed; returns the dashboard's URL.

    `namespace` separates the actors of different job tables. Raises SetupError where Ray does not
    answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise leave CUDA_VISIBLE_DEVICES alone for work that asked for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # Ray keeps metrics of every name that a task ever had, 20 kB each here, and sends all of them
    # every few seconds. Each job has a name; `xsweep metrics` counts them.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    address = settings.ray_address or ensure_local(settings.home).address
    _reach_without_proxy(address)
    _check_head(address)
    if _is_on_loopback_alone(address):
        os.environ[MANY_HOSTS] = "0"
    import ray

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
    except Exception as error:  # ConnectionError, RuntimeError, and errors of Ray's own
        raise SetupError(explain(address, error)) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _reach_without_proxy(address: str) -> None:
    """Exempt the cluster from `http_proxy`, which gRPC and Ray's agents would use for it."""
    host = address.rpartition(":")[0].rpartition("/")[2]
    exempt = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY", ""), "localhost", LOOPBACK]
    names = dict.fromkeys(",".join([*exempt, host]).split(","))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, names))


def disconnect(settings: Settings, *, stop: bool) -> None:
    """Disconnect from Ray; `stop` also stops the cluster if xsweep started it here."""
    import ray

    ray.shutdown()
    if stop and not settings.ray_address:
        stop_local(settings.home)


def probe(settings: Settings) -> tuple[str | None, dict[str, float]]:
    """Return the dashboard's URL and the cluster's resources, by Ray's names."""
    import ray

    dashboard = connect(settings, namespace="xsweep-doctor")
    resources = ray.cluster_resources()
    ray.shutdown()
    return dashboard, resources


def _check_head(address: str) -> None:
    """Raise SetupError where no head answers; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise SetupError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check "
            "RAY_ADDRESS, or leave it empty to have one started here"
        ) from error
    deadline = time.monotonic() + NODE_START_S
    if not _has_a_node():
        log.info("waiting up to %.0f s for a Ray node on this machine", NODE_START_S)
    while not _has_a_node():
        if time.monotonic() > deadline:
            raise SetupError(
                f"no Ray node runs on this machine, and the cluster at {address} can only be "
                "reached through one: start it, `ray start --address=... --num-cpus=0 "
                "--num-gpus=0`"
            )
        time.sleep(0.2)
    if not _speaks_grpc(address):
        raise SetupError(
            f"the server at {address} is not a Ray head: check RAY_ADDRESS (a head's port is "
            "6379 unless it was started with another)"
        )


def _is_on_loopback_alone(address: str) -> bool:
    host, _, port = address.rpartition(":")
    bound = [
        each.laddr.ip.removeprefix("::ffff:")
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and str(each.laddr.port) == port
    ]
    return host in (LOOPBACK, "localhost") and set(bound) == {LOOPBACK}


def _has_a_node() -> bool:
    return any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))


def _speaks_grpc(address: str) -> bool:
    import grpc

    if os.environ.get("RAY_USE_TLS") == "1":
        return True  # unknown: the connection needs certificates that only Ray has
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def explain(address: str, error: Exception) -> str:
    """Explain why Ray refused a connection, and what to do about it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if "Version mismatch" in message:
        return (
            f"the Ray cluster at {address} has another version ({message}): install the same Ray "
            "and Python here and there"
        )
    if type(error).__name__ == "AuthenticationError" or "token" in message.lower():
        return (
            f"no Ray cluster answers at {address}: it refuses this token; give the one that it was "
            "started with by RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        )
    return (
        f"no Ray cluster answers at {address} ({message[:300]}): check RAY_ADDRESS and the "
        "cluster's token (RAY_AUTH_TOKEN_PATH), or leave RAY_ADDRESS empty to have one started here"
    )


def exit_if_head_lost(head: str) -> None:
    """Exit this process with code 3 once the head has not answered for `AWAY_S`.

    Watched from a thread: Ray's calls block while the head is away, and after 60 s Ray would exit
    the process without our message. Nothing is lost: workers keep their jobs, and the database
    everything else.
    """

    def watch() -> None:
        host, _, port = head.rpartition(":")
        answered_s = time.monotonic()
        while time.monotonic() - answered_s < AWAY_S:
            time.sleep(ANSWER_S / 2)
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
                answered_s = time.monotonic()
        log.error(
            "exiting: no answer from Ray's head at %s for %.0f s; when it is back, `xsweep run` "
            "continues from here",
            head,
            AWAY_S,
        )
        logging.shutdown()
        os._exit(SetupError.exit_code)

    threading.Thread(target=watch, name="watches Ray's head", daemon=True).start()


def ensure_local(home: Path) -> LocalCluster:
    """Return the cluster of this machine, started if needed; sets its token for this process.

    A cluster that another process began to start is waited for, and replaced if it does not come
    up. Raises SetupError where Ray does not start.
    """
    token = home / "ray-token"
    if not token.exists():
        with atomic_write(token) as draft:
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ[MANY_HOSTS] = "0"
    _reach_without_proxy(LOOPBACK)
    local = running_local(home)
    if local and (local.up or _comes_up(home, local)):
        return local
    stop_local(home)
    return _start(home)


def running_local(home: Path) -> LocalCluster | None:
    """Return the cluster that xsweep started here earlier, if it still runs."""
    local = _recorded(home)
    try:
        return local if local and _is_alive(_head_of(local)) else None
    except psutil.NoSuchProcess:
        return None


def stop_local(home: Path, *, grace_s: float = 2.0) -> None:
    """Stop the cluster that xsweep started here, and all that it runs or left behind."""
    local = _recorded(home)
    if local is None:
        return
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILLED_S)):
        # Listed each time: a cluster that is still starting has more of them by now.
        processes = _processes_of(local)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + patience_s
        while any(map(_is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
    if local.folder:
        shutil.rmtree(local.folder, ignore_errors=True)
    _record_of(home).unlink(missing_ok=True)


HEAD_PORTS = ("port", "dashboard-port")
NODE_PORTS = (
    *("node-manager-port", "object-manager-port", "metrics-export-port", "runtime-env-agent-port"),
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
)


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """Return distinct free ports; one that Ray draws itself may be one that it refuses later."""
    ports: dict[str, int] = {}
    for name in names:
        ports[name] = free_port(ports.values())
    return ports


def node_options(ports: Mapping[str, int]) -> list[str]:
    """Return options of `ray start` on a machine with other users: free ports, allocated cores."""
    return [
        *(word for name, port in ports.items() for word in (f"--{name}", str(port))),
        # 0: the kernel gives each worker a port; Ray's own range is that of every cluster
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", str(allocated_cpus()), "--include-log-monitor", "False"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"),
    ]


def _start(home: Path) -> LocalCluster:
    ports = free_ports([*HEAD_PORTS, *NODE_PORTS])
    folder = temporary_folder()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", LOOPBACK, "--dashboard-host", LOOPBACK, "--temp-dir", str(folder)),
        *node_options(ports),
    ]
    # Waits for a line that confirms the record; a starter that dies before sends none.
    wait = 'read -r _ || exec rmdir "$0"; exec "$@" </dev/null'
    once_recorded = ["/bin/sh", "-c", wait, str(folder), *command]
    output = _log_of(home)
    output.parent.mkdir(exist_ok=True)
    # Python's own sockets lie in TMPDIR, too.
    environment = {**child_environment(), "TMPDIR": str(folder)}
    environment["RAY_START_HOOK"] = f"{__name__}.{disable_client_server.__name__}"
    with output.open("w") as out:
        process = subprocess.Popen(
            once_recorded,
            env={name: value for name, value in environment.items() if name not in SECRETS},
            stdout=out,
            stderr=out,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    local = LocalCluster(
        address=f"{LOOPBACK}:{ports['port']}",
        dashboard=f"http://{LOOPBACK}:{ports['dashboard-port']}",
        boot=_boot(),
        pid=process.pid,
        started=psutil.Process(process.pid).create_time(),
        up=False,
        folder=str(folder),
    )
    _record(home, local)
    assert process.stdin
    process.stdin.write(b"recorded\n")
    process.stdin.close()
    if not _comes_up(home, local):
        stop_local(home)
        lines = output.read_text(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if "Error" in line), "no error")
        raise SetupError(
            f"Ray did not start ({said[:300]}); its output is in {output}. Try: xsweep doctor"
        )
    return local


def disable_client_server(parameters: Any, head: bool) -> None:
    """Ray's start hook: keep port 10001 closed, which would listen on all interfaces."""
    parameters.ray_client_server_port = None


def _comes_up(home: Path, local: LocalCluster) -> bool:
    """Wait for a cluster that is starting, and record that it is up. False: it failed."""
    while "Ray runtime started" not in _log_of(home).read_text(errors="replace"):
        if running_local(home) is None or time.time() - local.started > START_TIMEOUT_S:
            return False
        time.sleep(0.1)
    _record(home, replace(local, up=True))
    return True


def _log_of(home: Path) -> Path:
    return home / "logs" / "ray.log"


def temporary_folder() -> Path:
    """Make a folder for one cluster; sockets below it have paths of at most 107 bytes.

    Raises SetupError where no folder can be made.
    """
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > MOST_TEMPORARY_BYTES:
        parent = Path("/tmp")  # noqa: S108
    try:
        return Path(tempfile.mkdtemp(prefix="xsweep-", dir=parent))
    except OSError as error:
        raise SetupError(
            f"{parent} cannot be written ({error.strerror}): set TMPDIR to a folder that can, of "
            f"at most {MOST_TEMPORARY_BYTES} bytes"
        ) from error


def allocated_cpus() -> int:
    """Return the number of cores of this allocation: affinity, cgroup and Slurm may limit it."""
    cores = [len(os.sched_getaffinity(0)), *_cores_of_cgroup()]
    if (slurm := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        cores.append(int(slurm))
    return max(1, min(cores))


def _cores_of_cgroup() -> Iterator[int]:
    """Yield the quotas of this process's cgroup and of those around it (version 2)."""
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip("/\n")
        for folder in (CGROUPS / own, *(CGROUPS / own).parents):
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                yield math.floor(int(quota) / int(period))


def free_port(taken: Collection[int] = ()) -> int:
    """Return a port that nothing uses and that neither the kernel nor Ray will give to another.

    `taken` are ports that were drawn before and that nothing listens on yet. The kernel gives
    ports from 32768 on to connections, and Ray those below 20000 to its workers.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port in taken:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port


def _record_of(home: Path) -> Path:
    """Return the file that names this host's cluster: several hosts may mount one home."""
    return home / f"ray-{socket.gethostname()}.json"


def _boot() -> str:
    """Name what process numbers are valid in: this boot of the machine, this container."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"


def _recorded(home: Path) -> LocalCluster | None:
    try:
        local = LocalCluster(**json.loads(_record_of(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return local if local.boot == _boot() else None


def _record(home: Path, local: LocalCluster) -> None:
    with atomic_write(_record_of(home)) as draft:
        draft.write_text(json.dumps(asdict(local)))


def _head_of(local: LocalCluster) -> psutil.Process:
    """Raise psutil.NoSuchProcess where it is gone, and where its pid is another process's."""
    process = psutil.Process(local.pid)
    if abs(process.create_time() - local.started) >= 2:
        raise psutil.NoSuchProcess(local.pid)
    return process


def _processes_of(local: LocalCluster) -> list[psutil.Process]:
    """List the processes of a cluster, its head last; the head itself may have been killed."""
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


def _is_alive(process: psutil.Process) -> bool:
    # In a container without an init nothing reaps orphans: the dead stay listed as zombies.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

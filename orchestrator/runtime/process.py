"""The controller process: one per installation, stopped cleanly by signals."""

import fcntl
import hashlib
import logging
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sqlalchemy import Engine

from xsweep.db.engine import connect, redacted
from xsweep.db.events import first_event_s
from xsweep.db.status import Outlook, outlook, summary
from xsweep.errors import SetupError, first_line
from xsweep.orchestrator.forecast import eta
from xsweep.orchestrator.formatting import counted
from xsweep.orchestrator.runtime import ray_cluster
from xsweep.orchestrator.runtime.import_path import child_environment
from xsweep.orchestrator.settings import Settings
from xsweep.orchestrator.storage.store import Store, open_store

if TYPE_CHECKING:
    from xsweep.orchestrator.runtime.controller import Controller

log = logging.getLogger("xsweep")

LOG_EVERY_S = 30.0
"""Interval of progress lines in the log."""

AWAY = "for the database"
"""Reason to wait during an outage, whichever statement has noticed it."""

START_S = 10.0
"""Time for a controller that was started to take the lock."""

PROBATION_S = 1.0
"""Time after that in which it opens database and store; Ray takes longer."""

GRACE_S = 120.0
"""Time for jobs to save a checkpoint when the controller is stopped."""

TRACKED_S = 30.0
"""Time for trackers to receive the rest when the controller ends."""


def run(
    settings: Settings,
    *,
    until_idle: bool = True,
    metrics_port: int | None = None,
    show: Callable[[Engine], AbstractContextManager[Callable[[], None]]] | None = None,
) -> int:
    """Run jobs until none is left or, with `until_idle=False`, until a signal.

    `show` gives a function to call now and then, see `xsweep.orchestrator.monitoring.live`.

    The first SIGTERM or Ctrl-C drains: running jobs save a checkpoint and become ready again,
    uncharged. The second exits at once; the next attempts resume at the last checkpoint. Returns 0;
    1 if some job of an active sweep has failed for good; 130 or 143 after a signal.

    Raises SetupError where another controller is running here, or where database, store or cluster
    do not answer.
    """
    from xsweep.orchestrator.monitoring.metrics import serving_metrics
    from xsweep.orchestrator.monitoring.trackers import require
    from xsweep.orchestrator.monitoring.webhook import announcing

    require(settings.trackers)
    settings.home.mkdir(parents=True, exist_ok=True)
    with _exclusive(settings.home):
        engine = connect(settings.database, create=True)
        store = open_store(settings.store)
        left = outlook(engine)
        if left.idle and until_idle:
            log.info("nothing to do: %d of %d jobs are done", left.finished, left.total)
            if not settings.ray_address:
                ray_cluster.stop_local(settings.home)
            return 1 if left.failed else 0
        with (
            serving_metrics(engine, metrics_port),
            announcing(engine, settings.webhook) as announce,
            _tracking(settings),
            show(engine) if show else nullcontext(lambda: None) as draw,
        ):
            log.info("connecting to Ray (starting it takes some seconds)")
            dashboard = ray_cluster.connect(settings, namespace=namespace(settings, engine))
            token = os.environ.get("RAY_AUTH_TOKEN_PATH")
            hint = f" (it asks for a token: cat {token})" if dashboard and token else ""
            log.info("Ray's dashboard: %s%s", dashboard or "not running", hint)
            received = _record_signals()
            with _controller(settings, engine, store, dashboard) as controller:
                controller.adopt()
                failed = _loop(controller, received, [announce, draw], until_idle=until_idle)
        if received:
            return 128 + received[0]
        return 1 if failed else 0


def start_detached(settings: Settings) -> int | None:
    """Start a controller that outlives this process; its pid, or None if one runs already.

    Raises SetupError, with the last line of its log, where it ends in its first second.
    """
    if is_running(settings):
        return None
    path = _log_of(settings, "controller")
    process = _start(settings, path, "run")
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if _holder(settings.home) == str(process.pid):
            until = min(until, time.monotonic() + PROBATION_S)
        time.sleep(0.05)
    if process.returncode:
        lines = path.read_text(errors="replace").strip().splitlines()
        raise SetupError(
            f"the controller that was started ended at once: {lines[-1] if lines else 'no output'} "
            f"(its log: {path})"
        )
    return process.pid


def _log_of(settings: Settings, name: str) -> Path:
    path = settings.home / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _start(
    settings: Settings, output: Path, *arguments: str, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    """Start the program with these settings, in a session of its own."""
    # By environment, not by argument: a database URL may hold a password, and `ps` shows arguments.
    environment = child_environment() | {
        "XSWEEP_HOME": str(settings.home),
        "XSWEEP_DB": settings.database,
        "XSWEEP_STORE": settings.store,
    }
    if settings.ray_address:
        environment["RAY_ADDRESS"] = settings.ray_address
    with output.open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "xsweep.orchestrator", *arguments],
            env=environment,
            stdin=stdin,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


@contextmanager
def _tracking(settings: Settings) -> Iterator[None]:
    """Send to each tracker from a process of its own; at the end they have `TRACKED_S` for it."""
    started = {}
    for name in settings.trackers:
        command = "track", "--follow", "--to", name
        started[name] = _start(settings, _log_of(settings, name), *command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        for process in started.values():
            assert process.stdin
            process.stdin.close()
        until = time.monotonic() + TRACKED_S
        for name, process in started.items():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                log.warning(
                    "tracker   %s: not all is sent: later, xsweep track --to %s", name, name
                )


def leash() -> Callable[[float], bool]:
    """Return a function that waits, and returns True after a signal or the end of a piped stdin.

    A controller holds the other end of the pipe, however it dies.
    """
    received, piped = _record_signals(), stat.S_ISFIFO(os.fstat(0).st_mode)

    def ended(pause_s: float = 0.0) -> bool:
        until = time.monotonic() + pause_s
        while not (over := received or (piped and select.select([0], [], [], 0)[0])):
            if time.monotonic() >= until:
                break
            time.sleep(0.2)
        return bool(over)

    return ended


def namespace(settings: Settings, engine: Engine) -> str:
    """Return Ray's namespace for this job table's actors, distinct on a shared cluster.

    Tables on two hosts may have one URL, such as the same path, and a copy shares its history.
    """
    table = f"{redacted(settings.database)} since {first_event_s(engine)!r}"
    return f"xsweep-{hashlib.sha256(table.encode()).hexdigest()[:12]}"


@contextmanager
def _controller(
    settings: Settings, engine: Engine, store: Store, dashboard: str | None
) -> Iterator["Controller"]:
    """Give a controller on the connected cluster; closes it and disconnects at the end.

    Raises SetupError where a node fails preflight, or where the cluster goes away.
    """
    import ray

    from xsweep.orchestrator.runtime.autoscale import Demand
    from xsweep.orchestrator.runtime.controller import Controller
    from xsweep.orchestrator.runtime.placement import live_nodes
    from xsweep.orchestrator.runtime.pool import Pool
    from xsweep.orchestrator.runtime.preflight import Preflight

    given = settings.ray_address
    preflight = Preflight(store) if given else None
    controller = None
    try:
        if preflight:
            preflight.require(live_nodes)
        controller = Controller(
            engine,
            store,
            dashboard=dashboard,
            pool=Pool(prefix=f"{namespace(settings, engine)}/", preflight=preflight),
            lease_s=settings.lease_s,
            demand=Demand(settings.node_wait_s if given else 0.0, scales=bool(given)),
            limits=settings.limits,
        )
        ray_cluster.exit_if_head_lost(ray.get_runtime_context().gcs_address)
        yield controller
        controller.close()
    except (ray.exceptions.RayError, ConnectionError) as error:
        # The next controller adopts the jobs that still run there, and restarts the others.
        raise SetupError(
            f"the Ray cluster at {given or 'this machine'} went away ({first_line(error)}): "
            "when it is back, `xsweep run` continues from here"
        ) from error
    finally:
        if preflight:
            preflight.close()
        busy = controller is not None and controller.busy
        ray_cluster.disconnect(settings, stop=not busy)
        engine.dispose()


def _loop(
    controller: "Controller",
    received: list[int],
    after_step: Sequence[Callable[[], None]],
    *,
    until_idle: bool,
) -> bool:
    """Step until idle or until a signal is received; True if some job has failed for good."""
    waiting = ""
    logged_s = waiting_logged_s = time.monotonic()
    while not received:
        try:
            controller.step()
            for call in after_step:
                call()
            if time.monotonic() - logged_s > LOG_EVERY_S:
                _log_progress(controller.engine)
                logged_s = time.monotonic()
            if controller.busy:
                continue
            left = outlook(controller.engine)
        except SetupError as error:
            # Jobs continue without us; those whose lease expires meanwhile are stopped afterwards.
            if waiting != AWAY or time.monotonic() - waiting_logged_s > LOG_EVERY_S:
                log.warning("%s", error)
                waiting, waiting_logged_s = AWAY, time.monotonic()
            time.sleep(1.0)
            continue
        if left.idle and until_idle:
            break
        unmet = controller.demand.summary()
        if left.claimable and not unmet:
            continue
        reason = unmet or _waits_for(left)
        if reason != waiting or (unmet and time.monotonic() - waiting_logged_s > LOG_EVERY_S):
            age = f" (for {controller.demand.age_s:.0f} s)" if unmet else ""
            log.info("waiting %s%s", reason, age)
            waiting, waiting_logged_s = reason, time.monotonic()
    if received:
        log.info("stopping: waiting for %s to checkpoint", counted(len(controller.attempts), "job"))
        controller.drain(GRACE_S, hurry=lambda: len(received) > 1)
    return outlook(controller.engine).failed > 0


def _log_progress(engine: Engine) -> None:
    found = summary(engine)
    for sweep in found.sweeps:
        if eta.count(sweep, eta.OPEN):
            log.info("progress  %s: %s", sweep.name, eta.progress_text(sweep, found))


def _waits_for(left: Outlook) -> str:
    if left.running:
        return f"for {counted(left.running, 'job')} of another controller"
    if left.resting:
        return f"for the retry of {counted(left.resting, 'job')}"
    return "for new jobs"


def _record_signals() -> list[int]:
    """Return the list to which SIGTERM and SIGINT are appended as they arrive."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    return received


def is_running(settings: Settings) -> bool:
    """Return whether a controller holds this installation's lock."""
    path = settings.home / "controller.lock"
    if not path.exists():
        return False
    with path.open() as file:
        return not _lock(file, shared=True)


def _holder(home: Path) -> str:
    """Return the pid in the lock's file without locking it: that could be in the holder's way."""
    with suppress(OSError):
        return (home / "controller.lock").read_text().strip()
    return ""


@contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    # flock is released when the process dies; a PID file is not.
    with (home / "controller.lock").open("a+") as file:
        if not _lock(file, shared=False):
            file.seek(0)
            raise SetupError(
                f"a controller is running here already (pid {file.read().strip() or '?'}): follow "
                "it with `xsweep status --watch`, or stop it with SIGTERM"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: TextIO, *, shared: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

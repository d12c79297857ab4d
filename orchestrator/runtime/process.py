"""The controller as a process: one per installation, ended cleanly by signals."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from xsweep.errors import SetupError, first_line
from xsweep.orchestrator.forecast import eta
from xsweep.orchestrator.runtime.import_path import child_environment
from xsweep.orchestrator.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.status import Outlook
    from xsweep.orchestrator.runtime.controller import Controller
    from xsweep.orchestrator.storage.store import Store


log = logging.getLogger("xsweep")


TELL_S = 30.0
"""How often the log says how far everything is."""


GRACE_S = 120.0
"""How long jobs may take to save a checkpoint when the controller is told to leave."""


def run(settings: Settings, *, until_idle: bool = True, metrics_port: int | None = None) -> int:
    """Run jobs until none is left (or, with `until_idle=False`, until told to leave).

    The first SIGTERM or Ctrl-C drains: running jobs save and go back to ready, uncharged. The
    second leaves at once; their next attempt resumes at the last checkpoint. Returns 0; 1 if some
    job of an active sweep has failed for good; 130 or 143 after a signal.

    Raises SetupError where another controller is running here, or where database, store or cluster
    do not answer.
    """
    from xsweep.db.engine import connect
    from xsweep.db.status import outlook
    from xsweep.orchestrator.runtime import ray_cluster
    from xsweep.orchestrator.runtime.ray_cluster import stop_local
    from xsweep.orchestrator.storage.store import open_store

    settings.home.mkdir(parents=True, exist_ok=True)
    with _only_one(settings.home):
        engine = connect(settings.database, create=True)
        store = open_store(settings.store)
        left = outlook(engine)
        if left.idle and until_idle:
            log.info("nothing to do: %d of %d jobs are done", left.finished, left.total)
            if not settings.ray_address:
                stop_local(settings.home)
            return 1 if left.failed else 0
        from xsweep.orchestrator.monitoring.metrics import Watching

        watching = Watching(engine, settings, metrics_port)
        log.info("connecting to Ray (starting it takes some seconds)")
        dashboard = ray_cluster.connect(settings, namespace=namespace(settings))
        log.info("Ray's dashboard: %s", dashboard or "not running")
        signals = _Signals()
        with (
            closing(watching),
            _controller(settings, engine, store, dashboard) as controller,
        ):
            controller.adopt()
            failed = _loop(controller, signals, watching.tick, until_idle=until_idle)
        if signals.received:
            return 128 + signals.received[0]
        return 1 if failed else 0


def start_detached(settings: Settings) -> int | None:
    """Start a controller that outlives this process; its pid, or None if one runs already."""
    if is_running(settings):
        return None
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # By environment, not by argument: a database URL may hold a password, and `ps` shows arguments.
    environment = child_environment() | {
        "XSWEEP_HOME": str(settings.home),
        "XSWEEP_DB": settings.database,
        "XSWEEP_STORE": settings.store,
    }
    if settings.ray_address:
        environment["RAY_ADDRESS"] = settings.ray_address
    with (logs / "controller.log").open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "xsweep.orchestrator", "run"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process.pid


def is_running(settings: Settings) -> bool:
    """Whether a controller holds this installation's lock."""
    path = settings.home / "controller.lock"
    if not path.exists():
        return False
    with path.open() as file:
        return not _lock(file, shared=True)


def namespace(settings: Settings) -> str:
    """A name that keeps the workers of different job tables on one Ray ray_cluster apart."""
    import hashlib

    from xsweep.db.engine import redacted

    return f"xsweep-{hashlib.sha256(redacted(settings.database).encode()).hexdigest()[:12]}"


@contextmanager
def _controller(
    settings: Settings, engine: "Engine", store: "Store", dashboard: str | None
) -> Iterator["Controller"]:
    """A controller on the cluster that this process is connected to, and the end of both.

    Raises SetupError where a node is not fit for work, or where the cluster goes away.
    """
    import ray

    from xsweep.orchestrator.runtime import placement, ray_cluster
    from xsweep.orchestrator.runtime.autoscale import Demand
    from xsweep.orchestrator.runtime.controller import Controller
    from xsweep.orchestrator.runtime.pool import Pool
    from xsweep.orchestrator.runtime.preflight import Preflight

    given = settings.ray_address
    gate = Preflight(store) if given else None
    controller = None
    try:
        if gate:
            gate.require(placement.living)
        controller = Controller(
            engine,
            store,
            dashboard=dashboard,
            pool=Pool(prefix=f"{namespace(settings)}/", gate=gate),
            lease_s=settings.lease_s,
            demand=Demand(settings.node_wait_s if given else 0.0, scales=bool(given)),
            limits=settings.limits,
        )
        ray_cluster.exit_if_head_lost(ray.get_runtime_context().gcs_address)
        yield controller
        controller.close()
    except (ray.exceptions.RayError, ConnectionError) as error:
        # What still runs there is adopted by the next controller; what does not is begun again.
        raise SetupError(
            f"the Ray cluster at {given or 'this machine'} went away ({first_line(error)}): "
            "`xsweep run` goes on from here when it is back"
        ) from error
    finally:
        if gate:
            gate.close()
        busy = controller is not None and controller.busy
        ray_cluster.disconnect(settings, stop=not busy)
        engine.dispose()


def _loop(
    controller: "Controller", signals: "_Signals", tick: Callable[[], None], *, until_idle: bool
) -> bool:
    """Steps until idle or told to leave; whether some job has failed for good."""
    from xsweep.db.status import outlook

    waiting = ""
    told_s = again_s = time.monotonic()
    while not signals.received:
        try:
            controller.step()
            tick()
            if time.monotonic() - told_s > TELL_S:
                _tell(controller)
                told_s = time.monotonic()
            if controller.busy:
                continue
            left = outlook(controller.engine)
        except SetupError as error:
            # Jobs go on without us; those whose lease runs out meanwhile are stopped afterwards.
            log.warning("%s", error)
            time.sleep(1.0)
            continue
        if left.idle and until_idle:
            break
        reason = controller.demand.told() or _waits_for(left)
        if reason != waiting or (controller.demand.told() and time.monotonic() > again_s):
            age = f" (since {controller.demand.age_s:.0f} s)" if controller.demand.told() else ""
            log.info("waiting   %s%s", reason, age)
            waiting, again_s = reason, time.monotonic() + TELL_S
    if signals.received:
        log.info("leaving   %d running jobs save their state", len(controller.assigned))
        controller.drain(GRACE_S, hurry=lambda: len(signals.received) > 1)
    return outlook(controller.engine).failed > 0


def _tell(controller: "Controller") -> None:
    """Log how far each unfinished sweep is."""
    from xsweep.db.status import summary

    found = summary(controller.engine)
    for sweep in found.sweeps:
        if eta.count(sweep, eta.OPEN):
            log.info("progress  %s: %s", sweep.name, eta.progress_text(sweep, found))


def _waits_for(left: "Outlook") -> str:
    if left.running:
        return f"for {left.running} jobs of another controller"
    if left.resting:
        return f"for {left.resting} failed jobs to be tried again"
    return "for new jobs"


class _Signals:
    """The signals that asked us to leave, in order of arrival."""

    def __init__(self) -> None:
        self.received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received.append(number)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    # A lock of the kernel's ends with its process, however that ends; a pid file would not.
    with (home / "controller.lock").open("a+") as file:
        if not _lock(file, shared=False):
            file.seek(0)
            raise SetupError(
                f"a controller is running here already (pid {file.read().strip() or '?'}): follow "
                "it with `xsweep status --watch`, or end it with SIGTERM"
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

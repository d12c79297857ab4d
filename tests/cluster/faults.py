"""The faults: each is inflicted in the middle of a training, and mended where machines are mended.

A fault returns what happened, in words, once it has been inflicted; it may wait for the job table
to show that somebody noticed.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from tests.cluster.hosts import Host
from tests.cluster.site import LEASE_S, Service, Site, Sweep
from tests.waiting import wait_for
from xsweep.db.events import history

SHORT_CUT_S = 4.0
"""Shorter than a lease, and than what Ray takes to give a node up."""
NOTICED_S = 150.0
"""How long a loss may take to be noticed, on a machine that has much else to do."""

HEAD = ("ray", "gcs_server", "raylet", "dashboard.py", "monitor.py", "log_monitor.py")
"""Programs and modules of Ray's head."""


@dataclass(frozen=True)
class Scene:
    """What runs at the moment of a fault."""

    site: Site
    sweep: Sweep
    engine: Engine
    controller: Service
    job_id: int
    """A training past its first checkpoint."""
    host: Host
    pid: int
    """Its process, as this program sees it."""

    def attempts(self) -> int:
        """How often the training was claimed."""
        told = history(self.engine, job_id=self.job_id, latest=1000)
        return sum(event.kind == "claimed" for event in told)

    def noticed(self) -> None:
        """Wait until the training was taken from whoever had it and claimed anew."""
        wait_for(lambda: self.attempts() > 1, NOTICED_S, "the training to be claimed again")


def crash_of_a_node(scene: Scene) -> str:
    scene.host.crash()
    return f"all of {scene.host.name} killed; it came back"


def killed_rank(scene: Scene) -> str:
    os.kill(scene.pid, signal.SIGKILL)
    return f"the job's process on {scene.host.name} killed"


def killed_controller(scene: Scene) -> str:
    for pid in _processes(scene.site.head, "orchestrator", "xsweep"):
        _kill(pid)
    return "the controller killed; it was started again"


def killed_head(scene: Scene) -> str:
    starts = scene.site.nodes["head"].starts
    for pid in _processes(scene.site.head, *HEAD):
        _kill(pid)
    wait_for(lambda: scene.site.nodes["head"].starts > starts, what="the head's new start")
    return "Ray's head killed; it was started again and knew nothing"


def short_cut(scene: Scene) -> str:
    scene.host.cut()
    time.sleep(SHORT_CUT_S)
    scene.host.mend()
    return f"{scene.host.name} off the network for {SHORT_CUT_S:.0f} s"


def long_cut(scene: Scene) -> str:
    began_s = time.monotonic()
    os.kill(scene.pid, signal.SIGSTOP)  # if it ended before it is missed, it would be accepted
    scene.host.cut()
    try:
        time.sleep(LEASE_S)
        scene.noticed()
        os.kill(scene.pid, signal.SIGCONT)  # it goes on beside its successor, still cut off
    finally:
        scene.host.mend()
    return f"{scene.host.name} off the network for {time.monotonic() - began_s:.0f} s"


def restarted_database(scene: Scene) -> str:
    scene.site.stop_database()
    time.sleep(3.0)
    scene.site.start_database()
    return "PostgreSQL stopped at once, for 3 s"


def full_disk(scene: Scene) -> str:
    ballast = scene.site.shared / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    try:
        wait_for(lambda: _failed(scene, "INFRA"), NOTICED_S, "a job that the full disk fails")
    finally:
        ballast.unlink()
    return "the store's disk full until a job had failed"


def stopped_worker(scene: Scene) -> str:
    os.kill(scene.pid, signal.SIGSTOP)
    try:
        scene.noticed()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(scene.pid, signal.SIGCONT)
    return f"the job's process on {scene.host.name} stopped past its lease, then went on"


FAULTS: dict[str, Callable[[Scene], str]] = {
    "kill -9 of a worker": killed_rank,
    "kill -9 of a node": crash_of_a_node,
    "kill -9 of the controller": killed_controller,
    "kill -9 of the head": killed_head,
    "cut off, shorter than a lease": short_cut,
    "cut off, longer than a lease": long_cut,
    "restart of PostgreSQL": restarted_database,
    "full disk": full_disk,
    "SIGSTOP past the lease": stopped_worker,
}


def _failed(scene: Scene, failure: str) -> bool:
    told = history(scene.engine, latest=10_000)
    return any(e.kind in ("failed", "retried") and e.detail.get("failure") == failure for e in told)


def _processes(host: Host, *words: str) -> list[int]:
    """Those on a host whose program or module is named so; never PostgreSQL's."""
    found = []
    for pid in host.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            names = {Path(part).name for part in command[:3]} | set(command[:3])
            if any(word in names or any(n.startswith(f"{word}.") for n in names) for word in words):
                found.append(pid)
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

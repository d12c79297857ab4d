"""What a rehearsal is disturbed with: SIGKILL for workers, the controller and the database."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

KINDS = ("worker", "worker", "controller")


class Faults:
    """Kills something at random times; how often it hit is in `counts`.

    Kinds come in random order, each as often as it stands in `KINDS` before any comes again.
    """

    def __init__(
        self, home: Path, every_s: float, seed: int, restart_database: Callable[[], None] | None
    ) -> None:
        self.home, self.every_s = home, every_s
        self.random = random.Random(seed)  # noqa: S311 - it picks victims, not secrets
        self.restart_database = restart_database
        self.counts: Counter[str] = Counter()
        self.following: list[str] = []
        self.next_s = time.monotonic() + self._pause_s()

    def _pause_s(self) -> float:
        # Not before the cluster is up and something runs.
        return 10 + self.random.expovariate(1 / max(1.0, self.every_s - 10))

    def strike(self, controller: subprocess.Popen) -> None:
        """Does what is due."""
        if not self.every_s or time.monotonic() < self.next_s:
            return
        self.next_s = time.monotonic() + self._pause_s()
        if not self.following:
            self.following = [*KINDS, *(["database"] if self.restart_database else [])]
            self.random.shuffle(self.following)
        kind = self.following.pop()
        if kind == "controller":
            controller.kill()
        elif kind == "database":
            assert self.restart_database
            self.restart_database()
        else:
            workers = list(self._workers())
            if not workers:
                return
            workers[self.random.randrange(len(workers))].kill()
        self.counts[kind] += 1
        print(f"{time.strftime('%H:%M:%S')} killed: {kind}", flush=True)

    def _workers(self) -> Iterator[psutil.Process]:
        from xsweep.orchestrator.runtime.ray_cluster import running_local

        cluster = running_local(self.home)
        if cluster is None:
            return
        for process in psutil.Process(cluster.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] == ["ray::Worker"] or process.name() == "ray::Worker":
                    yield process
            except (psutil.Error, IndexError):
                continue

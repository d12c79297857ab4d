"""Jobs that wait instead of working, and a controller that runs them on a local Ray cluster."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from sqlalchemy import Engine
from waiter import Waiter

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.controller import Controller
from xsweep.orchestrator.runtime.pool import Pool
from xsweep.orchestrator.storage.store import Store


def waiting_job(name: str, *parents: str, kind: str, seconds: float) -> jobs.NewJob:
    return jobs.NewJob(
        identity=identity(name),
        kind=kind,
        name=name,
        spec={"name": name, "seconds": seconds},
        parents={f"in{n}": identity(parent) for n, parent in enumerate(parents)},
        labels={"collection": parents[-1]} if kind == "evaluate" and parents else {},
        resources={"cpus": 1},
        cost=seconds,
    )


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@contextmanager
def cluster(slots: int) -> Iterator[None]:
    """A Ray cluster of our own with so many slots, whatever cores the machine has."""
    ray.init(
        address="local",
        num_cpus=slots,
        namespace="benchmark",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def controlled(folder: Path, grid: list[jobs.NewJob]) -> Iterator[tuple[Engine, Controller]]:
    """A controller with a database that holds the grid, in a folder."""
    engine = connect(f"sqlite:///{folder}/xsweep.db", create=True)
    jobs.add_sweep(engine, name="benchmark", grid="", jobs=grid)
    controller = Controller(engine, Store(folder / "store"), pool=Pool(Waiter))
    try:
        yield engine, controller
    finally:
        controller.close()
        engine.dispose()

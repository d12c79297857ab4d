"""Who works jobs off: xsweep, procrastinate and huey, and how the table of each is filled."""

import asyncio
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from xsweep.db import jobs
from xsweep.db.engine import connect

Program = Callable[[str, int], Iterator[int]]
"""Works off jobs, a number at once, and yields their ids; before the first job it yields -1."""


class Contestant(NamedTuple):
    """A program and how its table is filled with so many jobs."""

    name: str
    fill: Callable[[str, int], None]
    program: Program


def xsweep(url: str, at_once: int) -> Iterator[int]:
    engine = connect(url)
    yield -1
    while claims := jobs.claim(engine, owner="benchmark", limit=at_once, lease_s=600):
        done = jobs.finish(engine, [result(claim) for claim in claims])
        if len(done) < len(claims):
            raise RuntimeError("a result was refused")
        yield from (lease.job_id for lease in done)
    engine.dispose()


def procrastinate_worker(url: str, at_once: int) -> Iterator[int]:
    seen: list[int] = []
    app = procrastinate_app(url)

    @app.task(name="nothing", pass_context=True)
    async def nothing(context: Any) -> None:
        seen.append(context.job.id)

    yield -1
    quiet = {"install_signal_handlers": False, "listen_notify": False}
    app.run_worker(wait=False, concurrency=at_once, **quiet)
    yield from seen


def procrastinate_bare(url: str, at_once: int) -> Iterator[int]:
    from procrastinate.jobs import Status

    seen: list[int] = []
    app = procrastinate_app(url)

    async def chain(worker: int) -> None:
        while job := await app.job_manager.fetch_job(queues=None, worker_id=worker):
            await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
            seen.append(job.id or 0)

    async def work() -> None:
        async with app.open_async():
            worker = await app.job_manager.register_worker()
            await asyncio.gather(*(chain(worker) for _ in range(at_once)))

    yield -1
    asyncio.run(work())
    yield from seen


def huey(path: str, at_once: int, fsync: bool = True) -> Iterator[int]:
    application, _ = huey_app(path, fsync)
    yield -1
    while task := application.dequeue():
        yield application.execute(task)


def huey_without_fsync(path: str, at_once: int) -> Iterator[int]:
    yield from huey(path, at_once, fsync=False)


def procrastinate_app(url: str) -> Any:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    return app


def huey_app(path: str, fsync: bool) -> Any:
    from huey import SqliteHuey

    application = SqliteHuey("benchmark", filename=path, fsync=fsync, timeout=60)

    def nothing(number: int) -> int:
        return number

    nothing.__module__ = "benchmark"  # the same name in every process, whose main module differs
    return application, application.task()(nothing)


def fill_xsweep(url: str, count: int) -> None:
    engine = connect(url, create=True)
    jobs.add_sweep(engine, name="flat", grid="", jobs=[new_job(f"job {n}") for n in range(count)])
    engine.dispose()


def fill_procrastinate(url: str, count: int) -> None:
    app = procrastinate_app(url)

    @app.task(name="nothing")
    def nothing() -> None: ...

    with app.open():
        app.schema_manager.apply_schema()
        nothing.batch_defer(*({} for _ in range(count)))


def fill_huey(path: str, count: int) -> None:
    _, nothing = huey_app(path, fsync=False)
    for number in range(count):
        nothing(number)


def new_job(name: str, *parents: str, kind: str = "train", **more: Any) -> jobs.NewJob:
    return jobs.NewJob(
        identity=identity(name),
        kind=kind,
        name=name,
        spec={"name": name, "lr": 1e-5, "steps": 200_000},
        parents={f"in{n}": identity(parent) for n, parent in enumerate(parents)},
        **more,
    )


def identity(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def result(claim: jobs.Claim) -> jobs.NewResult:
    return jobs.NewResult(
        lease=claim.lease,
        folder="nowhere",
        manifest_sha256=claim.identity,
        summary={"steps": 1},
        provenance={},
    )

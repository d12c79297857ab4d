"""How fast jobs are claimed and finished, beside procrastinate and huey; and growth with size.

    python benchmarks/job_table.py throughput [--jobs 2000] [--server URL]
    python benchmarks/job_table.py growth [--sizes 1000 10000 100000 1000000]

Every contestant gets the same number of jobs that do nothing, in the same PostgreSQL server (one is
started in a temporary folder, with its usual settings) or in a SQLite file in the same folder, and
the same processes work them off. Rates count from the first claim to the last end; a ratio says by
how much xsweep is better, in rate and in CPU. `at once` is how many jobs a process holds together:
the limit of a claim and of `finish_all` here, the concurrency of a worker there.

xsweep claims, accepts a result and wakes children; procrastinate is measured as its own worker, and
as bare calls of its two database functions, which is what no worker can beat. huey removes a task
from its table when it is fetched: what its process held when it died is lost, so it shows the price
of leases and history, not an equal.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from db import jobs
from db.engine import connect
from db.outlook import outlook
from db.status import summary

Program = Callable[[str, int], Iterator[int]]
"""Works off jobs, a number at once, and yields their ids; before the first job it yields -1."""


def xsweep(url: str, at_once: int) -> Iterator[int]:
    engine = connect(url)
    yield -1
    while claims := jobs.claim(engine, owner="benchmark", limit=at_once, lease_s=600):
        done = jobs.finish_all(engine, [result(claim) for claim in claims], owner="benchmark")
        if len(done) < len(claims):
            raise RuntimeError("a result was refused")
        yield from (job_id for job_id, _ in done)
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
        job_id=claim.job_id,
        token=claim.token,
        folder="nowhere",
        manifest_sha256=claim.identity,
        summary={"steps": 1},
        provenance={},
    )


def run(program: Program, place: str, at_once: int, barrier: Any, answers: Any) -> None:
    """One process of a contestant: its ids, when it began and ended, and its CPU seconds."""
    ids = program(place, at_once)
    next(ids)
    barrier.wait()
    began, cpu_s = time.monotonic(), time.process_time()
    done = list(ids)
    answers.put((done, began, time.monotonic(), time.process_time() - cpu_s))


def race(
    program: Program, place: str, processes: int, at_once: int, count: int, server: int | None
) -> dict[str, Any]:
    """Work the place off; jobs per second, CPU ms per job (with the server's), jobs done twice."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    arguments = (program, place, at_once, barrier, answers)
    crowd = [context.Process(target=run, args=arguments) for _ in range(processes)]
    before_s = cpu_of_server(server)
    for process in crowd:
        process.start()
    found = [answers.get(timeout=600) for _ in crowd]
    server_s = cpu_of_server(server) - before_s
    for process in crowd:
        process.join()
    ids = [id_ for done, *_ in found for id_ in done]
    wall_s = max(ended for *_, ended, _ in found) - min(began for _, began, *_ in found)
    return {
        "rate": len(ids) / wall_s,
        "client_ms": 1000 * sum(cpu_s for *_, cpu_s in found) / count,
        "server_ms": 1000 * server_s / count,
        "twice": len(ids) - len(set(ids)),
        "lost": count - len(set(ids)),
    }


def cpu_of_server(pid: int | None) -> float:
    """CPU seconds of a PostgreSQL server's processes up to now, of those that ended too."""
    if pid is None:
        return 0.0
    postmaster = psutil.Process(pid)
    while True:
        ended = postmaster.cpu_times()
        seconds = ended.children_user + ended.children_system
        try:
            for process in [postmaster, *postmaster.children()]:
                times = process.cpu_times()
                seconds += times.user + times.system
        except psutil.NoSuchProcess:  # it ends now: its time moves to the postmaster's children
            continue
        return seconds


@contextmanager
def postgresql(given: str | None, folder: Path) -> Iterator[tuple[str, int | None]]:
    """URL of a server whose role may create databases, and its process if it runs here."""
    if given:
        yield given, None
        return
    import pgserver

    server = pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri(), server.get_pid()
    server.cleanup()


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
        yield server.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def throughput(options: argparse.Namespace) -> None:
    count, at_once = options.jobs, options.at_once
    contestants: dict[str, list[tuple[str, Callable[..., None], Program]]] = {
        "PostgreSQL": [
            ("xsweep", fill_xsweep, xsweep),
            ("procrastinate, its worker", fill_procrastinate, procrastinate_worker),
            ("procrastinate, bare calls", fill_procrastinate, procrastinate_bare),
        ],
        "SQLite": [
            ("xsweep", fill_xsweep, xsweep),
            ("huey, fsync", fill_huey, huey),
            ("huey, no fsync", fill_huey, huey_without_fsync),
        ],
    }
    print(f"{count} jobs, {at_once} at once per process, best of {options.repeats}; load {load()}")
    print("| | | processes | jobs/s | ratio | CPU ms a job + server's | ratio | twice | lost |")
    print("|---|---|---|---|---|---|---|---|---|")
    folder = Path(tempfile.mkdtemp(prefix="xsweep-benchmark-", dir="/tmp"))
    with postgresql(options.server, folder / "server") as (server, pid):
        for place, programs in contestants.items():
            for processes in options.processes:
                ours: dict[str, Any] = {}
                for name, fill, program in programs:
                    tries = []
                    for n in range(options.repeats):
                        path = folder / f"{n}.db"
                        if place == "PostgreSQL":
                            with database(server, "benchmark") as url:
                                fill(url, count)
                                tries.append(race(program, url, processes, at_once, count, pid))
                        else:
                            url = f"sqlite:///{path}" if program is xsweep else str(path)
                            fill(url, count)
                            tries.append(race(program, url, processes, at_once, count, None))
                            for left in folder.glob("*.db*"):
                                left.unlink()
                    best = {
                        "rate": max(each["rate"] for each in tries),
                        "client": min(each["client_ms"] for each in tries),
                        "server": min(each["server_ms"] for each in tries),
                    }
                    ours = ours or best
                    cpu_ms, our_cpu_ms = (w["client"] + w["server"] for w in (best, ours))
                    print(
                        f"| {place} | {name} | {processes} |"
                        f" {best['rate']:.0f} | {ours['rate'] / best['rate']:.1f} |"
                        f" {best['client']:.2f} + {best['server']:.2f} |"
                        f" {cpu_ms / our_cpu_ms:.1f} |"
                        f" {sum(t['twice'] for t in tries)} | {sum(t['lost'] for t in tries)} |",
                        flush=True,
                    )
    shutil.rmtree(folder, ignore_errors=True)


def cells(count: int) -> Iterable[jobs.NewJob]:
    """A study of `count` jobs: trainings on common tokens, each with 21 evaluations."""
    yield new_job("tokens", kind="prepare")
    yield new_job("candidates", kind="prepare")
    for run_ in range(max(1, (count - 2) // 22)):
        train = f"train {run_}"
        labels = {"backbone": f"b{run_ % 9}", "objective": f"o{run_ % 6}", "seed": run_ // 54}
        yield new_job(train, "tokens", labels=labels, cost=100)
        for place in range(21):
            name = f"evaluate {run_} on {place}"
            where = labels | {"collection": f"c{place}"}
            yield new_job(name, train, "candidates", kind="evaluate", labels=where, cost=10)


def measure(url: str, size: int) -> dict[str, float]:
    """Wall seconds of every step on a table of a size, and this process's memory."""
    grid = list(cells(size))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = connect(url, create=True)
    found: dict[str, float] = {"jobs": len(grid)}

    def timed(name: str, work: Callable[[], Any], repeats: int = 1) -> Any:
        cpu_s = time.process_time()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            answer = work()
            seconds.append(time.perf_counter() - began)
        found[name] = min(seconds)
        found[f"{name} cpu"] = (time.process_time() - cpu_s) / repeats
        return answer

    added = timed("submit", lambda: jobs.add_sweep(engine, name="s", grid="", jobs=grid))
    again = timed("submit again", lambda: jobs.add_sweep(engine, name="s", grid="", jobs=grid))
    assert (added.new, again.new) == (len(grid), 0)
    found["memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["of the grid MB"] = memory / 1024
    timed("status", lambda: summary(engine), repeats=5)
    timed("status of a sweep", lambda: summary(engine, "s"), repeats=3)
    timed("outlook", lambda: outlook(engine), repeats=3)
    lives = {"owner": "benchmark", "lease_s": 600.0}

    def work_off(steps: int) -> None:
        for _ in range(steps):
            claims = jobs.claim(engine, limit=1, **lives)
            jobs.finish_all(engine, [result(claim) for claim in claims])

    work_off(2)  # wakes every training
    timed("100 claims and results", lambda: work_off(100))
    timed("status of a sweep, later", lambda: summary(engine, "s"), repeats=3)
    engine.dispose()
    return found


def growth(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="xsweep-benchmark-", dir="/tmp"))
    with postgresql(options.server, folder / "server") as (server, _):
        for place in options.databases:
            rows = []
            for size in options.sizes:
                command = [sys.executable, __file__, "measure", "--sizes", str(size), "--url"]
                with database(server, "benchmark") as url:
                    if place == "SQLite":
                        url = f"sqlite:///{folder / 'growth.db'}"
                    done = subprocess.run([*command, url], check=True, capture_output=True)
                rows.append(json.loads(done.stdout))
                for left in folder.glob("growth.db*"):
                    left.unlink()
            print(f"\n{place}, load {load()}; seconds, and CPU seconds of the client in brackets\n")
            print(f"| | {' | '.join(format(int(row['jobs']), ',') for row in rows)} |")
            print("|---" * (len(rows) + 1) + "|")
            for name in [key for key in rows[0] if not key.endswith("cpu")][1:]:
                values = [
                    f"{row[name]:.3g}"
                    + (f" ({row[name + ' cpu']:.2g})" if f"{name} cpu" in row else "")
                    for row in rows
                ]
                print(f"| {name} | {' | '.join(values)} |", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def load() -> str:
    return Path("/proc/loadavg").read_text().split()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["throughput", "growth", "measure"])
    parser.add_argument("--server", help="a PostgreSQL server's URL, .../postgres?...")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--databases", nargs="+", default=["SQLite", "PostgreSQL"])
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "measure":
        print(json.dumps(measure(options.url, options.sizes[0])))
    else:
        {"throughput": throughput, "growth": growth}[options.what](options)


if __name__ == "__main__":
    main()

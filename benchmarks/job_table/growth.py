"""Growth: every step on tables of a thousand to a million jobs, none of them worse than linear."""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contestants import new_job, result
from servers import cpu_of_server, database, load, postgresql

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.status import outlook, summary
from xsweep.orchestrator.serve import Request
from xsweep.orchestrator.serve.pages import Site
from xsweep.orchestrator.storage.store import Store

TOO_SHORT_S = 0.05
"""Times below are noise and fixed costs; growth is judged from here on."""
LINEAR = 1.15
"""The largest exponent that counts as linear: ten times the jobs in 14 times the seconds."""


def growth(options: argparse.Namespace) -> int:
    """Print a table for each database; 1 if some step grew worse than linearly, else 0."""
    worse: list[str] = []
    with (
        TemporaryDirectory(prefix="xsweep-benchmark-", dir="/tmp") as folder,
        postgresql(options.server, Path(folder) / "server") as (server, pid),
    ):
        for place in options.databases:
            rows = []
            for size in options.sizes:
                with database(server, "benchmark") as url:
                    if place == "sqlite":
                        url = f"sqlite:///{folder}/growth-{size}.db"
                    command = [sys.executable, str(Path(__file__).parent), "measure"]
                    command += ["--sizes", str(size), "--url", url, "--pid", str(pid or 0)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                rows.append(json.loads(done.stdout))
                for left in Path(folder).glob("growth-*"):
                    left.unlink()
            print(
                f"\n{place}, load {load()}; seconds, CPU seconds (with the server's) in brackets,"
            )
            print("and the steepest growth of the latter as an exponent: 1 is linear\n")
            heads = [f"{row['jobs']:,.0f}" for row in rows]
            print(f"| | {' | '.join(heads)} | exponent |")
            print("|---" * (len(rows) + 2) + "|")
            for name in [key for key in rows[0] if not key.endswith("cpu")][1:]:
                values = [shown(row, name) for row in rows]
                points = [(row["jobs"], row.get(f"{name} cpu", 0.0)) for row in rows]
                steepest = exponent(points)
                power = "" if steepest is None else f"{steepest:.2f}"
                print(f"| {name} | {' | '.join(values)} | {power} |", flush=True)
                if power and float(power) > LINEAR:
                    worse.append(f"{place}: {name} grows with the power {power}")
    print("\n" + ("\n".join(worse) or "no step is worse than linear"))
    return 1 if worse else 0


def exponent(points: list[tuple[float, float]]) -> float | None:
    """The largest power with which (jobs, seconds) grow from one size to the next.

    [(1_000, 0.1), (10_000, 1.0)] grow with the power 1.0. None where all is too short to tell.
    """
    steps = [
        math.log(later_s / earlier_s) / math.log(more / fewer)
        for (fewer, earlier_s), (more, later_s) in pairwise(points)
        if earlier_s >= TOO_SHORT_S
    ]
    return max(steps, default=None)


def shown(row: dict[str, float], name: str) -> str:
    cpu_s = row.get(f"{name} cpu")
    return f"{row[name]:.3g}" + (f" ({cpu_s:.2g})" if cpu_s is not None else "")


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


def measure(url: str, size: int, server: int | None) -> dict[str, float]:
    """Wall and CPU seconds of every step on a table of a size, and this process's memory."""
    grid = list(cells(size))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = connect(url, create=True)
    found: dict[str, float] = {"jobs": len(grid)}

    def timed(name: str, work: Callable[[], Any], repeats: int = 1) -> Any:
        cpu_s = time.process_time() + cpu_of_server(server)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            answer = work()
            seconds.append(time.perf_counter() - began)
        found[name] = min(seconds)
        cpu_s = time.process_time() + cpu_of_server(server) - cpu_s
        found[f"{name} cpu"] = cpu_s / repeats
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

    def work_off(steps: int, at_once: int = 1) -> None:
        for _ in range(steps):
            claims = jobs.claim(engine, limit=at_once, **lives)
            jobs.finish(engine, [result(claim) for claim in claims])

    timed("2 results that all others wait for", lambda: work_off(1, at_once=2))
    timed("100 claims and results", lambda: work_off(min(100, len(grid) - 2)))
    timed("status of a sweep, later", lambda: summary(engine, "s"), repeats=3)
    site, page = Site(engine, Store(Path("unused")), ""), Request(("sweep", "s"), {})
    timed("web page of a sweep", lambda: site.respond(page), repeats=3)
    timed("cancel the sweep", lambda: jobs.cancel(engine, sweep="s"))
    timed("retry the sweep", lambda: jobs.retry(engine, sweep="s"))
    engine.dispose()
    return found

"""Rates: every contestant works off the same number of jobs that do nothing."""

import argparse
import multiprocessing
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import contestants as of
from contestants import Contestant, Program
from servers import cpu_of_server, database, load, postgresql

CONTESTANTS = {
    "postgresql": [
        Contestant("xsweep", of.fill_xsweep, of.xsweep),
        Contestant("procrastinate, its worker", of.fill_procrastinate, of.procrastinate_worker),
        Contestant("procrastinate, bare calls", of.fill_procrastinate, of.procrastinate_bare),
    ],
    "sqlite": [
        Contestant("xsweep", of.fill_xsweep, of.xsweep),
        Contestant("huey, fsync", of.fill_huey, of.huey),
        Contestant("huey, no fsync", of.fill_huey, of.huey_without_fsync),
    ],
}


def throughput(options: argparse.Namespace) -> None:
    """Print a table for each number of jobs at once."""
    with (
        TemporaryDirectory(prefix="xsweep-benchmark-", dir="/tmp") as folder,
        postgresql(options.server, Path(folder) / "server") as (server, pid),
    ):
        for at_once in options.at_once:
            print(f"\n{options.jobs} jobs, {at_once} at once per process; load {load()}\n")
            print("| | | processes | jobs/s | ratio | CPU ms a job + server's | ratio |", end="")
            print(" twice | lost |\n|---|---|---|---|---|---|---|---|---|")
            for place in options.databases:
                for processes in options.processes:
                    ours: dict[str, float] = {}
                    for each in CONTESTANTS[place]:
                        tries = [
                            attempt(place, each, processes, at_once, options.jobs, server, pid)
                            for _ in range(options.repeats)
                        ]
                        best = best_of(tries)
                        ours = ours or best
                        print(row(place, each.name, processes, best, ours), flush=True)


def attempt(
    place: str,
    contestant: Contestant,
    processes: int,
    at_once: int,
    count: int,
    server: str,
    pid: int | None,
) -> dict[str, float]:
    """One race on a fresh database."""
    name, fill, program = contestant
    if place == "postgresql":
        with database(server, "benchmark") as url:
            fill(url, count)
            return race(program, url, processes, at_once, count, pid)
    with TemporaryDirectory(prefix="xsweep-benchmark-", dir="/tmp") as folder:
        path = f"{folder}/jobs.db"
        url = f"sqlite:///{path}" if name == "xsweep" else path
        fill(url, count)
        return race(program, url, processes, at_once, count, None)


def race(
    program: Program, place: str, processes: int, at_once: int, count: int, server: int | None
) -> dict[str, float]:
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


def run(program: Program, place: str, at_once: int, barrier: Any, answers: Any) -> None:
    """One process of a contestant: its ids, when it began and ended, and its CPU seconds."""
    ids = program(place, at_once)
    next(ids)
    barrier.wait()
    began, cpu_s = time.monotonic(), time.process_time()
    done = list(ids)
    answers.put((done, began, time.monotonic(), time.process_time() - cpu_s))


def best_of(tries: Iterable[dict[str, float]]) -> dict[str, float]:
    """The best figures of repeated races; what was lost or done twice counts in all of them."""
    gathered = {name: [each[name] for each in tries] for name in next(iter(tries))}
    together = {"rate": max, "client_ms": min, "server_ms": min, "twice": sum, "lost": sum}
    return {name: together[name](values) for name, values in gathered.items()}


def row(
    place: str, name: str, processes: int, best: dict[str, float], ours: dict[str, float]
) -> str:
    cpu_ms, our_cpu_ms = (each["client_ms"] + each["server_ms"] for each in (best, ours))
    return (
        f"| {place} | {name} | {processes} | {best['rate']:.0f} | {ours['rate'] / best['rate']:.1f}"
        f" | {best['client_ms']:.2f} + {best['server_ms']:.2f} | {cpu_ms / our_cpu_ms:.1f}"
        f" | {best['twice']:.0f} | {best['lost']:.0f} |"
    )

"""A study in small: how much of the ideal schedule is reached, and what the controller takes."""

import ctypes
import heapq
import random
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

import psutil
from simulated import cluster, controlled, waiting_job
from sqlalchemy import Engine

from xsweep.db.claim import LAST_WAVES
from xsweep.db.jobs import NewJob
from xsweep.db.status import outlook

COLLECTIONS = 22
TRAINING_S = 4_290.0
"""Mean seconds on an H100 by the study's forecast: 193 hours for 162 trainings."""
EVALUATION_S = 80.0
"""79 hours for 3,564 evaluations, with a start of a worker for each."""
SPREAD = 0.3
"""Seconds differ by up to this share from their mean, as backbones and collections do."""

IDEAL = 0.95
CORE = 0.10
GROWTH = 1.10
"""How much memory may grow from the first quarter to the end, without cache and freed memory."""


def study(folder: Path, trainings: int, slots: int, scale: float) -> int:
    """Print what was reached; 1 if a bar is missed, else 0."""
    grid = simulated_study(trainings, scale)
    ideal, late_s = schedule(grid, slots, early=False)
    early, soon_s = schedule(grid, slots, early=True)
    work_s = sum(job.spec["seconds"] for job in grid)
    load = Path("/proc/loadavg").read_text().split()[0]
    print(f"{len(grid)} jobs of {work_s:.0f} s on {slots} slots, a {scale:g}th of the forecast's")
    print(f"seconds; load {load}")
    print(f"longest chain first: {ideal:.1f} s, a model's last evaluation after {late_s:.1f} s")
    print(f"evaluations first: {early:.1f} s ({early / ideal - 1:+.2%}), after {soon_s:.1f} s")
    process = psutil.Process()
    memory: list[tuple[float, float, float]] = []
    with cluster(slots), controlled(folder, grid) as (engine, controller):
        began, cpu_s = time.perf_counter(), sum(process.cpu_times()[:2])
        while controller.busy or not outlook(engine).idle:
            controller.step()
            taken_s = time.perf_counter() - began
            if not memory or taken_s - memory[-1][0] > ideal / 50:
                memory.append((taken_s, *memory_mb(engine)))
        taken_s = time.perf_counter() - began
        core = (sum(process.cpu_times()[:2]) - cpu_s) / taken_s
        left = outlook(engine)
    quarter = next(row for row in memory if row[0] >= taken_s / 4)
    print(f"done {left.finished} of {left.total}, failed {left.failed}")
    print(f"taken {taken_s:.1f} s, the shortest schedule {ideal:.1f} s, {ideal / taken_s:.1%}")
    print(f"slots busy {work_s / slots / taken_s:.1%} of the time")
    print(f"controller {core:.1%} of a core, {1000 * core * taken_s / len(grid):.1f} ms a job")
    for place, when in ((1, "memory"), (2, "without SQLite's cache, freed memory given back")):
        start, end = (memory[row][place] for row in (0, -1))
        print(f"{when}: {start:.0f} MB at the start,", end=" ")
        print(f"{quarter[place]:.0f} MB after a quarter, {end:.0f} MB at the end")
    good = ideal / taken_s >= IDEAL and core <= CORE and memory[-1][2] <= GROWTH * quarter[2]
    return 0 if good and left.finished == left.total else 1


def memory_mb(engine: Engine) -> tuple[float, float]:
    """Memory of this process without freed memory and SQLite's cache, which `engine` bounds."""
    process = psutil.Process()
    whole = process.memory_info().rss
    engine.dispose()  # a connection's cache goes with it; the next step opens another one
    ctypes.CDLL(None).malloc_trim(0)
    return whole / 2**20, process.memory_info().rss / 2**20


def simulated_study(trainings: int, scale: float) -> list[NewJob]:
    """Collections are prepared, backbones trained, and every run is evaluated on all of them."""
    chance = random.Random(0)  # noqa: S311

    def seconds(mean_s: float) -> float:
        return mean_s / scale * chance.uniform(1 - SPREAD, 1 + SPREAD)

    places = [f"collection {n}" for n in range(COLLECTIONS)]
    grid = [waiting_job(place, kind="prepare", seconds=seconds(EVALUATION_S)) for place in places]
    for n in range(trainings):
        run = f"run {n}"
        grid.append(waiting_job(run, kind="train", seconds=seconds(TRAINING_S)))
        for place in places:
            length_s = seconds(EVALUATION_S)
            name = f"{run} on {place}"
            grid.append(waiting_job(name, run, place, kind="evaluate", seconds=length_s))
    return grid


def schedule(grid: list[NewJob], slots: int, *, early: bool) -> tuple[float, float]:
    """Seconds of the whole and from a training's end to its last evaluation, in the mean.

    Nothing but the jobs takes time. With `early` they start as the controller claims them, without
    it by the longest chain behind them alone. Two jobs of 1 s on one slot take 2 s, on two 1 s.
    """
    seconds = {job.identity: job.spec["seconds"] for job in grid}
    trainings = {job.identity for job in grid if job.kind == "train"}
    chain_s = dict(seconds)
    children = defaultdict(list)
    for job in reversed(grid):  # children stand behind their parents
        for parent in job.parents.values():
            children[parent].append(job.identity)
            chain_s[parent] = max(chain_s[parent], seconds[parent] + chain_s[job.identity])
    age = {job.identity: n for n, job in enumerate(grid)}
    missing = {job.identity: len(job.parents) for job in grid}
    ready: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}

    def wake(id_: str) -> None:
        queue = ready[early and id_ in trainings]
        heapq.heappush(queue, (-chain_s[id_], age[id_], id_))

    for id_, count in missing.items():
        if not count:
            wake(id_)
    running: list[tuple[float, str]] = []
    ended_s: dict[str, float] = {}
    left, now_s = len(trainings), 0.0
    while any(ready.values()) or running:
        while any(ready.values()) and len(running) < slots:
            last = left <= LAST_WAVES * len(running)
            id_ = heapq.heappop(ready[last] or ready[not last])[2]
            left -= id_ in trainings
            heapq.heappush(running, (now_s + seconds[id_], id_))
        now_s, ended = heapq.heappop(running)
        ended_s[ended] = now_s
        for child in children[ended]:
            missing[child] -= 1
            if not missing[child]:
                wake(child)
    waits_s = [max(ended_s[each] for each in children[id_]) - ended_s[id_] for id_ in trainings]
    return now_s, mean(waits_s)

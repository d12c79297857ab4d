"""Overhead per job: the same empty jobs as raw Ray tasks, as trials of Ray Tune and as ours."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import ray
from simulated import cluster, controlled, waiting_job

from xsweep.db.status import outlook

HALF = 0.5
"""The share of Tune's overhead per trial that ours may have."""


def overhead(folder: Path, count: int, slots: int) -> int:
    """Print a table; 1 if our overhead per job is above half of Tune's per trial, else 0."""
    load = Path("/proc/loadavg").read_text().split()[0]
    print(f"{count} empty jobs on {slots} slots; load {load}\n")
    print("| | ms a job | ratio | CPU ms of the controlling process | CPU ms of all |")
    print("|---|---|---|---|---|")
    figures = {}
    contestants: dict[str, Callable[[Path, int, int], None]] = {
        "xsweep": ours,
        "raw Ray tasks": raw_tasks,
        "Ray Tune": tune,
        "Ray Tune, actors reused": tune_reusing,
    }
    with cluster(slots):
        raw_tasks(folder, 4 * slots, slots)  # the cluster's own processes are up
        for name, run in contestants.items():
            before = time.perf_counter(), own_cpu_s(), cluster_cpu_s()
            run(folder, count, slots)
            after = time.perf_counter(), own_cpu_s(), cluster_cpu_s()
            wall_ms, own_ms, all_ms = (
                1000 * (end - begin) / count for begin, end in zip(before, after, strict=True)
            )
            figures[name] = wall_ms
            ratio = wall_ms / figures["xsweep"]
            print(
                f"| {name} | {wall_ms:.1f} | {ratio:.2f} | {own_ms:.1f} | {all_ms:.1f} |",
                flush=True,
            )
    best = min(figures["Ray Tune"], figures["Ray Tune, actors reused"])
    return 1 if figures["xsweep"] > HALF * best else 0


def ours(folder: Path, count: int, slots: int) -> None:
    grid = [waiting_job(f"job {n}", kind="evaluate", seconds=0) for n in range(count)]
    with controlled(folder, grid) as (engine, controller):
        while controller.busy or not outlook(engine).idle:
            controller.step()
        if outlook(engine).finished != count:
            raise RuntimeError("some job is not done")


def raw_tasks(folder: Path, count: int, slots: int) -> None:
    @ray.remote(num_cpus=1, max_retries=0)
    def nothing() -> None: ...

    ray.get([nothing.remote() for _ in range(count)])


def tune(folder: Path, count: int, slots: int, *, reuse: bool = False) -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its progress is not for our table
    from ray import tune

    def nothing(config: dict) -> None:
        tune.report({"figure": config["n"]})

    tuner = tune.Tuner(
        tune.with_resources(nothing, {"cpu": 1}),
        param_space={"n": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=slots, reuse_actors=reuse),
        run_config=tune.RunConfig(
            name=f"reuse-{reuse}", storage_path=str(folder / "tune"), verbose=0
        ),
    )
    if tuner.fit().num_errors:
        raise RuntimeError("some trial failed")


def tune_reusing(folder: Path, count: int, slots: int) -> None:
    tune(folder, count, slots, reuse=True)


def own_cpu_s() -> float:
    return sum(psutil.Process().cpu_times()[:2])


def cluster_cpu_s() -> float:
    """CPU seconds of this process and of all that it started, ended ones included."""
    total = 0.0
    for process in [psutil.Process(os.getpid()), *psutil.Process().children(recursive=True)]:
        try:
            total += sum(process.cpu_times())
        except psutil.NoSuchProcess:  # its time is its parent's from now on
            continue
    return total

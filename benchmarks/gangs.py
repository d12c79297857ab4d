"""What it costs to bring two ranks together: our own actors in a placement group, and Ray Train V2.

    python benchmarks/gangs.py [--repeats 5]

Each run sums a tensor over two gloo ranks and ends. The same cluster, one after the other; both
import torch in every run, since neither keeps its workers. Prints a table for docs/measurements.md:
seconds from the call to the sum on both ranks, CPU seconds of all processes of the cluster, and
placement groups left standing.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import psutil
import ray

from xsweep.orchestrator.runtime.placement import request_of
from xsweep.orchestrator.runtime.pool import Pool
from xsweep.orchestrator.runtime.worker import Task, Worker


def total(*_: object) -> float:
    """The sum over the ranks of 1: both have met."""
    import torch
    from torch import distributed

    value = torch.ones(1)
    distributed.all_reduce(value)
    return value.item()


class Summer(Worker):
    """A worker whose job is the sum, in a process group as the trainer's."""

    def _work(self, task: Task) -> None:
        from xsweep.trainer.distributed import process_group

        with process_group():
            assert total() == 2


def own(number: int) -> None:
    from xsweep.orchestrator.runtime.attempt import start_task

    pool = Pool(Summer, prefix="benchmark/")
    request = request_of({"cpus": 1, "ranks": 2})
    placement = None
    while placement is None:  # the last one's resources may still be on their way back
        placement = pool.take(f"gang {number}", request, alone=True)
    folder = tempfile.mkdtemp()
    task: Task = {
        "job_id": number,
        "token": 1,
        "kind": "train",
        "name": f"gang {number}",
        "spec": {},
        "inputs": {},
        "out": folder,
        "log": f"{folder}.log",
        "previous": [],
        "root": tempfile.gettempdir(),
        "remote": None,
    }
    outcomes = ray.get(list(start_task(placement, task)))
    pool.kill(placement)
    assert all(each["state"] == "finished" for each in outcomes), outcomes


def ray_train(number: int) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        total,
        train_loop_config={},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name=f"gang-{number}", storage_path=tempfile.mkdtemp()),
    ).fit()


def measure(way: Callable[[int], None], repeats: int) -> tuple[list[float], float, int]:
    """Seconds of each run, CPU seconds of a run, and groups left standing."""
    seconds = []
    before_s = _cpu_s()
    for number in range(repeats):
        began_s = time.perf_counter()
        way(number)
        seconds.append(time.perf_counter() - began_s)
    spent_s = (_cpu_s() - before_s) / repeats
    table = ray.util.placement_group_table()
    left = sum(entry["state"] != "REMOVED" for entry in table.values())
    return seconds, spent_s, left


def _cpu_s() -> float:
    """CPU seconds of this machine so far: the runs' processes end, and with them their counts."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    # Train's own cleaner needs the dashboard; without it groups stay.
    ray.init(
        "local", num_cpus=4, include_dashboard=True, log_to_driver=False, logging_level="error"
    )
    print("| way | first run | median of the others | CPU seconds a run | groups left |")
    print("|---|---|---|---|---|")
    for name, way in (("own actors", own), ("Ray Train V2 `TorchTrainer`", ray_train)):
        seconds, spent_s, left = measure(way, repeats)
        later = statistics.median(seconds[1:])
        print(
            f"| {name} | {seconds[0]:.1f} s | {later:.1f} s | {spent_s:.1f} | {left} |", flush=True
        )
    assert Pool(prefix="benchmark/").remove_leaked_groups(()) == []
    ray.shutdown()


if __name__ == "__main__":
    main()

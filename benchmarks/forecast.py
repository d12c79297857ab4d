"""Forecast against measured durations, from the finished jobs of a database.

    python benchmarks/forecast.py [sqlite:///.xsweep/xsweep.db]

Each half of the jobs is forecast at the pace of the other half (every second job of a kind), as
`xsweep plan` does it for jobs that are still to come; beside it stand the errors of single jobs,
which do not cancel each other, and the stated model alone. Means
something only where the jobs ran under the load that the forecast is for.
"""

import sys
from collections import defaultdict

from xsweep.db.engine import connect
from xsweep.db.results import Duration, load_durations
from xsweep.orchestrator.forecast.cost import group_of, paces
from xsweep.orchestrator.forecast.cost_model import (
    GPUS,
    Device,
    seconds,
    this_core,
    work_of,
)


def main(url: str) -> None:
    by_kind: dict[str, list[Duration]] = defaultdict(list)
    for done in load_durations(connect(url)):
        by_kind[group_of(done.kind, done.spec)].append(done)
    halves = [[each for found in by_kind.values() for each in found[k::2]] for k in (0, 1)]
    heads = f"{'measured':>10} {'forecast':>10} {'ratio':>6} {'errors':>7} {'model':>6}"
    print(f"{'kind':20} {'jobs':>5} {heads}")
    totals = [0.0] * 4
    for kind, found in by_kind.items():
        sums = [0.0] * 4
        for half, other in ((0, 1), (1, 0)):
            for done in found[half::2]:
                device = device_of(done)
                expected_s = model_s(done, device)
                pace = paces(halves[other], device).get(kind)
                if pace is None:
                    continue
                forecast_s = expected_s * pace.ratio
                figures = (done.seconds, forecast_s, expected_s, abs(forecast_s - done.seconds))
                sums = [a + b for a, b in zip(sums, figures, strict=True)]
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
        show(kind, len(found), sums)
    show("all", sum(map(len, by_kind.values())), totals)


def device_of(done: Duration) -> Device:
    """The device that a job ran on."""
    if not done.resources.get("gpus"):
        return this_core()
    names = "".join(map(str, done.hardware.get("gpus", ()))).replace(" ", "")
    return next((device for name, device in GPUS.items() if name in names), GPUS["H100"])


def model_s(done: Duration, device: Device) -> float:
    """What the stated model expects."""
    work = work_of(done.kind, done.spec, done.parents)
    return seconds(work, device, float(done.resources.get("cpus", 1)))


def show(kind: str, jobs: int, sums: list[float]) -> None:
    measured, forecast, model, errors = sums
    if measured:
        print(
            f"{kind:20} {jobs:5} {measured:8.0f} s {forecast:8.0f} s {forecast / measured:6.2f} "
            f"{errors / measured:7.0%} {model / measured:6.2f}"
        )
    else:
        print(f"{kind:20} {jobs:5}   one job tells nothing about itself")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///.xsweep/xsweep.db")

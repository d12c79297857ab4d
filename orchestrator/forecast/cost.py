"""From planned jobs to device hours and wall time, at the pace of measured jobs where there are."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import TYPE_CHECKING, Any

from xsweep.orchestrator.forecast.cost_model import (
    CPU_CORE,
    Device,
    Planned,
    Work,
    seconds,
    work_of,
)

if TYPE_CHECKING:
    from xsweep.db.jobs import NewJob
    from xsweep.db.results import Duration


ASSUMED_FACTOR = 2.0
"""A forecast from the stated model alone may be wrong by so much, either way."""


LEAST_FACTOR = 1.1


FEW = 3
"""Measured jobs below which a pace is trusted no more than half as far as the model."""


@dataclass(frozen=True)
class Pace:
    """Measured seconds of one second of the model, for a kind of job on a device."""

    ratio: float
    jobs: int
    factor: float
    """The spread: nine of ten jobs lie within ratio / factor and ratio * factor."""


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes on a cluster. Seconds are device seconds unless said otherwise."""

    device: Device
    devices: int
    seconds: Mapping[str, float]
    """By kind of job: of GPUs for jobs that reserve some, else of CPU cores."""
    jobs: Mapping[str, int]
    paces: Mapping[str, Pace | None]
    """By kind; None: the stated model."""
    wall_s: float
    """By a schedule without gaps: work shared by all devices, no shorter than the longest chain."""
    chain_s: float
    all_s: float
    """Seconds of all jobs, done ones too, on whatever they run."""
    alone_s: float
    """The same if each run made its own tokens, candidates, teacher scores and stages."""
    factor: float

    @property
    def total_s(self) -> float:
        """All kinds together."""
        return sum(self.seconds.values())


def paces(durations: "Iterable[Duration]", device: Device) -> dict[str, Pace]:
    """The pace of each kind on this device, from jobs that ran on one of its name.

    Two trainings of which the model expects 10 s each, and which took 20 s and 20 s, give a ratio
    of 2; all jobs weigh as much as the model expects of them.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for done in durations:
        if _device_name(done.hardware, done.resources, device) != device.name:
            continue
        if done.spec.get("rehearsal"):  # its sizes are not those of the collections it names
            continue
        parents = {role: Planned(*parent) for role, parent in done.parents.items()}
        cpus = float(done.resources.get("cpus", 1))
        expected_s = seconds(work_of(done.kind, done.spec, parents), device, cpus)
        found[group_of(done.kind, done.spec)].append((done.seconds, expected_s))
    return {group: _pace(pairs) for group, pairs in found.items()}


def _pace(pairs: Sequence[tuple[float, float]]) -> Pace:
    ratio = sum(took for took, _ in pairs) / sum(expected for _, expected in pairs)
    logs = [math.log(max(took, 0.1) / expected) for took, expected in pairs]
    spread = math.exp(1.64 * pstdev(logs)) if len(logs) > 1 else 1.0
    least = LEAST_FACTOR if len(logs) >= FEW else math.sqrt(ASSUMED_FACTOR)
    return Pace(ratio=ratio, jobs=len(pairs), factor=max(least, min(spread, 4.0)))


def _device_name(hardware: Mapping[str, Any], resources: Mapping[str, Any], wanted: Device) -> str:
    """The device that a job used, by the wanted one's name where the hardware's contains it."""
    if not resources.get("gpus"):
        return CPU_CORE.name
    names = [str(name).replace(" ", "") for name in hardware.get("gpus", ())]
    return wanted.name if any(wanted.name in name for name in names) else "another GPU"


def group_of(kind: str, spec: Mapping[str, Any]) -> str:
    """Jobs whose paces are alike: preparations of tokens and of candidates are not."""
    if kind == "evaluate" and spec["scorer"]["type"] == "first_stage":
        return "first stage"
    return f"{kind} {spec['type']}" if kind == "prepare" else kind


def forecast(
    jobs: "Sequence[NewJob]",
    device: Device,
    devices: int,
    durations: "Iterable[Duration]" = (),
    done: frozenset[str] = frozenset(),
) -> Forecast:
    """The cost of the jobs that are not done, on `devices` GPUs of a kind, or cores of a CPU.

    Jobs that reserve no GPU run on cores, which a cluster with GPUs is taken to have enough of:
    their time counts in the longest chain, not in the device hours.
    """
    durations = list(durations)
    on_device, on_cpu = paces(durations, device), paces(durations, CPU_CORE)
    known = {job.identity: Planned(job.kind, job.spec) for job in jobs}
    by_kind: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    used: dict[str, Pace | None] = {}
    device_s: dict[str, float] = {}
    jobs_s: dict[str, float] = {}
    chain_s: dict[str, float] = {}
    spread = 0.0
    for job in jobs:
        parents = {role: known[identity] for role, identity in job.parents.items()}
        work = work_of(job.kind, job.spec, parents)
        job_s, pace, runs_on_device = _job_s(job, work, device, on_device, on_cpu)
        jobs_s[job.identity] = job_s
        before = max((chain_s[parent] for parent in job.parents.values()), default=0.0)
        is_done = job.identity in done
        chain_s[job.identity] = before + (0.0 if is_done else job_s)
        share = max(1.0, float(job.resources.get("cpus", 1))) if not device.is_gpu else 1.0
        device_s[job.identity] = job_s * share if runs_on_device else 0.0
        if is_done:
            continue
        counts[job.kind] += 1
        used[job.kind] = pace if job.kind not in used else used[job.kind] or pace
        by_kind[job.kind] += device_s[job.identity]
        spread += device_s[job.identity] * (pace.factor if pace else ASSUMED_FACTOR)
    total_s, longest_s = sum(by_kind.values()), max(chain_s.values(), default=0.0)
    return Forecast(
        device=device,
        devices=devices,
        seconds=dict(by_kind),
        jobs=dict(counts),
        paces=used,
        wall_s=max(longest_s, total_s / devices),
        chain_s=longest_s,
        all_s=sum(jobs_s.values()),
        alone_s=_alone_s(jobs, jobs_s),
        factor=spread / total_s if total_s else 1.0,
    )


def _job_s(
    job: "NewJob",
    work: Work,
    device: Device,
    on_device: Mapping[str, Pace],
    on_cpu: Mapping[str, Pace],
) -> tuple[float, Pace | None, bool]:
    """A job's seconds, the pace behind them, and whether it occupies the device."""
    runs_on_device = not device.is_gpu or bool(job.resources.get("gpus"))
    where, measured = (device, on_device) if runs_on_device else (CPU_CORE, on_cpu)
    pace = measured.get(group_of(job.kind, job.spec))
    expected_s = seconds(work, where, float(job.resources.get("cpus", 1)))
    return expected_s * (pace.ratio if pace else 1.0), pace, runs_on_device


def _alone_s(jobs: "Sequence[NewJob]", jobs_s: Mapping[str, float]) -> float:
    """Seconds if every run stood alone, with all that it and its evaluations need.

    A training that several cells share, as a stage or as a twin, counts once for each of them.
    """
    needs: dict[str, frozenset[str]] = {}
    runs: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        needs[job.identity] = frozenset({job.identity}).union(
            *(needs[parent] for parent in job.parents.values())
        )
        if job.kind == "evaluate":
            run = job.parents.get("run", job.identity)
            runs[run] |= needs[job.identity]
    return sum(jobs_s[identity] for needed in runs.values() for identity in needed)

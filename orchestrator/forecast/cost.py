"""Cost of planned jobs: device hours and wall time, corrected by the jobs measured so far."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from xsweep.db.jobs import NewJob
from xsweep.db.results import Duration
from xsweep.orchestrator.forecast.cost_model import CPU_CORE, Device, seconds, work_of

ASSUMED_FACTOR = 2.0
"""Assumed error of the cost model where nothing was measured: half to twice as long."""

LEAST_FACTOR = 1.1
"""Smallest error of a forecast from measured jobs."""

FEW = 3
"""Measured jobs below which a pace counts as no more than half as certain."""


@dataclass(frozen=True)
class Pace:
    """Measured time relative to the cost model, for one kind of job on one device."""

    ratio: float
    jobs: int
    factor: float
    """Spread: nine of ten jobs lie within ratio / factor and ratio * factor."""


@dataclass(frozen=True)
class Forecast:
    """Cost of a sweep on a cluster, in device seconds unless stated otherwise."""

    device: Device
    devices: int
    seconds: Mapping[str, float]
    """By kind of job: GPU seconds of jobs that reserve GPUs, else seconds of CPU cores."""
    jobs: Mapping[str, int]
    paces: Mapping[str, Pace | None]
    """By kind of job; None: the cost model alone."""
    wall_s: float
    """Wall time without gaps: work shared by all devices, at least the longest chain."""
    chain_s: float
    """Longest chain of jobs."""
    all_s: float
    """Seconds of all jobs on any device, finished ones included."""
    alone_s: float
    """The same if each run made its own tokens, candidates, teacher scores and stages."""
    factor: float
    """Error: the cost lies between 1 / factor and factor times the forecast."""
    asked_tokens: tuple[float, float] = (0.0, 0.0)
    """Tokens that servers read and write."""

    @property
    def total_s(self) -> float:
        """Device seconds of all kinds."""
        return sum(self.seconds.values())


def paces(durations: Iterable[Duration], device: Device) -> dict[str, Pace]:
    """The pace of each group of jobs on a device, from jobs that ran on one of its name.

    Two trainings of 10 s each by the model that took 20 s and 20 s give a ratio of 2. Jobs weigh
    by their modelled time.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for done in durations:
        # Rehearsals have other sizes than the collections that they name.
        if done.spec.get("rehearsal") or not _ran_on(device, done):
            continue
        cpus = float(done.resources.get("cpus", 1))
        work = work_of(done.kind, done.spec, done.parents)
        expected_s = seconds(work, device, cpus, int(done.resources.get("ranks") or 1))
        found[group_of(done.kind, done.spec)].append((done.seconds, expected_s))
    return {group: _pace(pairs) for group, pairs in found.items()}


def _pace(pairs: Sequence[tuple[float, float]]) -> Pace:
    ratio = sum(took for took, _ in pairs) / sum(expected for _, expected in pairs)
    logs = [math.log(max(took, 0.1) / expected) for took, expected in pairs]
    spread = math.exp(1.64 * pstdev(logs)) if len(logs) > 1 else 1.0
    least = LEAST_FACTOR if len(logs) >= FEW else math.sqrt(ASSUMED_FACTOR)
    return Pace(ratio=ratio, jobs=len(pairs), factor=max(least, min(spread, 4.0)))


def _ran_on(device: Device, done: Duration) -> bool:
    if not done.resources.get("gpus"):
        return device.name == CPU_CORE.name
    return any(device.name in str(gpu).replace(" ", "") for gpu in done.hardware.get("gpus", ()))


def group_of(kind: str, spec: Mapping[str, Any]) -> str:
    """The group of jobs that share a pace; preparations of tokens and of candidates differ."""
    if kind == "evaluate" and spec["scorer"]["type"] == "first_stage":
        return "first stage"
    return f"{kind} {spec['type']}" if kind == "prepare" else kind


def forecast(
    jobs: Sequence[NewJob],
    device: Device,
    devices: int,
    durations: Iterable[Duration] = (),
    done: frozenset[str] = frozenset(),
) -> Forecast:
    """The cost of the jobs that are not done, on `devices` GPUs of a type, or cores of a CPU.

    A cluster with GPUs is assumed to have enough cores for the jobs that reserve no GPU: these
    count in the longest chain, not in the device hours.
    """
    durations = list(durations)
    on_device, on_cpu = paces(durations, device), paces(durations, CPU_CORE)
    known = {job.identity: job.spec for job in jobs}
    by_kind: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    used: dict[str, Pace | None] = {}
    jobs_s: dict[str, float] = {}
    chain_s: dict[str, float] = {}
    spread = read = written = 0.0
    for job in jobs:
        uses_device = not device.is_gpu or bool(job.resources.get("gpus"))
        cpus = float(job.resources.get("cpus", 1))
        pace = (on_device if uses_device else on_cpu).get(group_of(job.kind, job.spec))
        parents = {role: known[identity] for role, identity in job.parents.items()}
        work = work_of(job.kind, job.spec, parents)
        ranks = int(job.resources.get("ranks") or 1)
        job_s = seconds(work, device if uses_device else CPU_CORE, cpus, ranks)
        job_s *= pace.ratio if pace else 1.0
        jobs_s[job.identity] = job_s
        chain_s[job.identity] = max((chain_s[each] for each in job.parents.values()), default=0.0)
        if job.identity in done:
            continue
        chain_s[job.identity] += job_s
        read, written = read + work.asked_tokens[0], written + work.asked_tokens[1]
        each = 1.0 if device.is_gpu else max(1.0, cpus)
        device_s = job_s * each * ranks if uses_device else 0.0
        counts[job.kind] += 1
        used[job.kind] = pace if job.kind not in used else used[job.kind] or pace
        by_kind[job.kind] += device_s
        spread += device_s * (pace.factor if pace else ASSUMED_FACTOR)
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
        asked_tokens=(read, written),
    )


def _alone_s(jobs: Sequence[NewJob], jobs_s: Mapping[str, float]) -> float:
    """Seconds if nothing were shared between runs, with all that a run and its evaluations need.

    A training that several cells share, as a stage or as a twin, counts once for each of them.
    """
    needs: dict[str, frozenset[str]] = {}
    runs: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        parents = (needs[parent] for parent in job.parents.values())
        needs[job.identity] = frozenset({job.identity}).union(*parents)
        if job.kind == "evaluate":
            runs[job.parents.get("run", job.identity)] |= needs[job.identity]
    return sum(jobs_s[identity] for needed in runs.values() for identity in needed)

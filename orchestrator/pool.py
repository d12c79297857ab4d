"""The workers on Ray: which live, what they hold of the cluster's resources, and which are warm."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.workers import Status, Worker

IDLE_S = 3.0
"""How long a warm worker waits for another job before its resources are freed."""
ANSWER_S = 2.0
"""How long to wait for the answer to a status question; silence is not death."""

SHARED = "worker "
"""How the names of warm workers begin."""

Resources = dict[str, float]


@dataclass
class Placement:
    """One worker and what it holds."""

    name: str
    actor: Any
    resources: Resources
    idle_since_s: float | None = None

    @property
    def shared(self) -> bool:
        """Whether it takes one job after the other; else it is named as its only one."""
        return self.name.startswith(SHARED)


class Pool:
    """The workers of one controller; an evaluation's worker is kept warm for the next one."""

    def __init__(self, worker: type[Worker] = Worker) -> None:
        self._worker = worker
        self._placements: dict[str, Placement] = {}

    def take(self, name: str, resources: Resources, *, alone: bool) -> Placement | None:
        """A worker for the job: a warm one, else a new one; None while its resources are taken.

        A job that runs `alone` gets a new process under its name, which ends with it.
        """
        if not alone:
            for placement in self._idle():
                if placement.resources == resources:
                    placement.idle_since_s = None
                    return placement
        if not self._fits(resources):
            for placement in self._idle():
                self.kill(placement)
            if not self._fits(resources):
                return None
        return self._new(name if alone else f"{SHARED}{uuid.uuid4().hex[:8]}", resources)

    def give_back(self, placement: Placement, *, reusable: bool) -> None:
        """The worker has ended its job: keep it warm or free its resources."""
        if reusable:
            placement.idle_since_s = time.monotonic()
        else:
            self.kill(placement)

    def free_idle(self, *, after_s: float = IDLE_S) -> None:
        """Free the workers that have been without a job for so long."""
        for placement in self._idle():
            if time.monotonic() - (placement.idle_since_s or 0.0) >= after_s:
                self.kill(placement)

    def kill(self, placement: Placement) -> None:
        """End the worker's process at once."""
        self._placements.pop(placement.name, None)
        ray.kill(placement.actor)

    def adopt(self, name: str, actor: Any, resources: Resources) -> Placement:
        """Count a surviving worker as ours."""
        placement = Placement(name, actor, resources)
        self._placements[name] = placement
        return placement

    def survivors(self) -> dict[str, Any]:
        """Every worker that lives in this namespace, by name."""
        return {name: ray.get_actor(name) for name in ray.util.list_named_actors()}

    def statuses(self, placements: Sequence[Placement]) -> dict[str, Status]:
        """The answers of those workers that gave one in time."""
        asked = {placement.actor.status.remote(): placement.name for placement in placements}
        if not asked:
            return {}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        statuses = {}
        for ref in answered:
            try:
                statuses[asked[ref]] = ray.get(ref)
            except ray.exceptions.RayError:
                # Its outcome fails too, and is settled from there.
                continue
        return statuses

    def room(self, resources: Resources | None) -> int:
        """How many jobs of such resources could be placed now, idle workers' room included.

        Without resources: 1 if anything at all could be placed, else 0.
        """
        free = self._free()
        for placement in self._idle():
            for key, held in placement.resources.items():
                free[key] += held
        if resources is None:
            return int(free.get("CPU", 0.0) > 0)
        counts = (free.get(key, 0.0) / need + 1e-6 for key, need in resources.items() if need)
        return max(0, int(min(counts, default=1.0)))

    def never_fits(self, resources: Resources) -> str | None:
        """What no node of the cluster could ever give, in words; None if one could."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wants = resources.items()
        if any(all(node.get(key, 0.0) >= need for key, need in wants) for node in nodes):
            return None
        largest = {key: max((node.get(key, 0.0) for node in nodes), default=0) for key in resources}
        needs = ", ".join(f"{need:g} {key}" for key, need in sorted(resources.items()))
        has = ", ".join(f"{has:g} {key}" for key, has in sorted(largest.items()))
        return f"asks for {needs}; the largest node has {has}: change `resources:` or add a node"

    def _idle(self) -> list[Placement]:
        return [p for p in self._placements.values() if p.idle_since_s is not None]

    def _free(self) -> Resources:
        free = dict(ray.cluster_resources())
        for placement in self._placements.values():
            for key, need in placement.resources.items():
                free[key] = free.get(key, 0.0) - need
        return free

    def _fits(self, resources: Resources) -> bool:
        free = self._free()
        # Resources are fractions of a GPU: 1 - 0.7 - 0.3 must not refuse what fits exactly.
        return all(free.get(key, 0.0) >= need - 1e-6 for key, need in resources.items())

    def _new(self, name: str, resources: Resources) -> Placement:
        remaining = {key: need for key, need in resources.items() if key not in _BUILT_IN}
        actor = (
            ray.remote(self._worker)
            .options(
                name=name,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                # run, status, stop and outcome may all be under way at once.
                max_concurrency=6,
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources=remaining or None,
            )
            .remote(resources.get("GPU", 0))
        )
        return self.adopt(name, actor, resources)


def runs_alone(kind: str, spec: Mapping[str, Any], resources: Resources) -> bool:
    """Whether a job needs a process of its own: trainings do, which leave memory and process
    groups behind, unless they are plain ones on a CPU."""
    plain = spec.get("optimisation", {}).get("engine") == "plain"
    return kind == "train" and not (plain and not resources.get("GPU"))


_BUILT_IN = {"CPU", "GPU", "memory"}


def as_ray_resources(requested: Mapping[str, Any]) -> Resources:
    """A job's `resources` under Ray's names; one CPU where nothing is said."""
    names = {"cpus": "CPU", "gpus": "GPU", "memory_bytes": "memory"}
    asked = {names.get(key, key): float(value) for key, value in requested.items() if value}
    return {"CPU": 1.0, **asked}

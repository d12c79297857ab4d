"""The workers on Ray: which live, what they hold of the cluster's resources, and which are warm."""

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from xsweep.orchestrator.runtime import placement as gangs
from xsweep.orchestrator.runtime import placement as nodes
from xsweep.orchestrator.runtime.placement import Node, Request, Share
from xsweep.orchestrator.runtime.preflight import Preflight
from xsweep.orchestrator.runtime.worker import Status, Worker

IDLE_S = 3.0
"""How long a warm worker waits for another job before its resources are freed."""


ANSWER_S = 2.0
"""How long to wait for the answer to a status question; silence is not death."""


SHARED = "worker "
"""How the names of warm workers begin."""


@dataclass
class Placement:
    """The worker of a job, or the ranks of its gang, and what they hold."""

    name: str
    request: Request
    actors: list[Any]
    """By rank."""
    nodes: list[str | None]
    """Ids of the nodes, by rank."""
    hosts: list[str] = field(default_factory=list)
    """Names of the nodes, by rank."""
    group: PlacementGroup | None = None
    idle_since_s: float | None = None
    model: str | None = None
    """What an evaluation has loaded here last."""

    @property
    def node(self) -> str:
        """Names of the nodes, each once."""
        return ", ".join(dict.fromkeys(self.hosts))

    @property
    def shared(self) -> bool:
        """Whether it takes one job after the other; else it is named as its only one."""
        return self.name.startswith(SHARED)


class Pool:
    """The workers of one controller; an evaluation's worker is kept warm for the next one."""

    def __init__(
        self, worker: type = Worker, *, prefix: str = "", gate: Preflight | None = None
    ) -> None:
        self.prefix = prefix
        """Begins the names of our placement groups, which tells them from those of others."""
        # Once: every `ray.remote` exports the class again, and Ray keeps each of them for good.
        self._worker: Any = ray.remote(worker)
        self._gate = gate
        self._placements: dict[str, Placement] = {}
        self._nodes: list[Node] = []
        self._leaving: list[Node] = []
        self._looked_s = 0.0

    def nodes(self) -> list[Node]:
        """The living nodes that are fit for work and stay, as they were a moment ago."""
        if time.monotonic() - self._looked_s > 1.0:
            going, found = nodes.leaving(), nodes.living()
            self._leaving = [node for node in found if node.id in going]
            found = [node for node in found if node.id not in going]
            self._nodes = self._gate.admit(found) if self._gate else found
            self._looked_s = time.monotonic()
            for placement in self._idle():
                if self._is_leaving(placement):
                    self.kill(placement)
        return self._nodes

    def leaves(self, placement: Placement) -> bool:
        """Whether a node of the placement will be taken away."""
        self.nodes()
        return self._is_leaving(placement)

    def take(
        self,
        name: str,
        request: Request,
        *,
        alone: bool,
        model: str | None = None,
        avoid: Collection[str] = (),
    ) -> Placement | None:
        """A worker for the job: a warm one, else a new one; None while its resources are taken.

        A job that runs `alone` gets new processes under its name, which end with it. Among warm
        ones, one that has `model` loaded comes first. `avoid` names nodes to leave alone.
        """
        if not alone:
            warm = [p for p in self._idle() if p.request == request and p.hosts[0] not in avoid]
            for placement in sorted(warm, key=lambda p: p.model != model):
                placement.idle_since_s, placement.model = None, model
                return placement
        chosen = self._choose(request, avoid) or self._make_room(request, avoid)
        if chosen is None:
            return None
        unique = name if alone else f"{SHARED}{uuid.uuid4().hex[:8]}"
        new = self._new(unique, request, chosen)
        if new:
            new.model = model
        return new

    def give_back(self, placement: Placement, *, reusable: bool) -> None:
        """The worker has ended its job: keep it warm or free its resources."""
        if reusable and not self._is_leaving(placement):
            placement.idle_since_s = time.monotonic()
        else:
            self.kill(placement)

    def free_idle(self, *, after_s: float = IDLE_S) -> None:
        """Free the workers that have been without a job for so long."""
        for placement in self._idle():
            if time.monotonic() - (placement.idle_since_s or 0.0) >= after_s:
                self.kill(placement)

    def kill(self, placement: Placement) -> None:
        """End the processes at once, all ranks together, and free what they reserved."""
        self._placements.pop(placement.name, None)
        for actor in placement.actors:
            ray.kill(actor)
        if placement.group:
            ray.util.remove_placement_group(placement.group)

    def adopt(self, name: str, request: Request, actors: list[Any], host: str | None) -> Placement:
        """Count surviving processes as ours."""
        ids = {node.name: node.id for node in self.nodes()}
        hosts = (host or "").split(", ")
        by_rank = hosts if len(hosts) == request.ranks else hosts[:1] * request.ranks
        group = gangs.find_group(self.prefix + name) if request.ranks > 1 else None
        where = [ids.get(host) for host in by_rank]
        placement = Placement(name, request, actors, where, by_rank, group)
        self._placements[name] = placement
        return placement

    def survivors(self) -> dict[str, Any]:
        """Every worker that lives in this namespace, by name."""
        found = {}
        for name in ray.util.list_named_actors():
            try:
                found[name] = ray.get_actor(name)
            except ValueError:
                continue  # it died between the two questions
        return found

    def remove_leaked_groups(self, owned: Collection[str]) -> list[str]:
        """Remove the placement groups that belong to none of these gangs; their names."""
        names = gangs.leaked(self.prefix, {self.prefix + name for name in owned})
        for name in names:
            if group := gangs.find_group(name):
                ray.util.remove_placement_group(group)
        return names

    def statuses(self, placements: Sequence[Placement]) -> dict[str, list[Status]]:
        """The answers of those workers that gave one in time, by rank; all ranks or none."""
        asked = [(p, [actor.status.remote() for actor in p.actors]) for p in placements]
        refs = [ref for _, of_ranks in asked for ref in of_ranks]
        if not refs:
            return {}
        answered = set(ray.wait(refs, num_returns=len(refs), timeout=ANSWER_S)[0])
        statuses = {}
        for placement, of_ranks in asked:
            if not answered.issuperset(of_ranks):
                continue
            try:
                heard: list[Status] = ray.get(of_ranks)
            except ray.exceptions.RayError:
                # Its outcome fails too, and is settled from there.
                continue
            placement.nodes = [status["node_id"] for status in heard]
            placement.hosts = [status["node"] for status in heard]
            statuses[placement.name] = heard
        return statuses

    def room(self, request: Request | None) -> int:
        """How many jobs of such a request could be placed now, idle workers' room included.

        Without a request: 1 if anything at all could be placed, else 0.
        """
        free = self._free(idle=True)
        if request is None:
            return int(any(amounts.get("CPU", 0.0) > nodes.ROUNDING for amounts in free.values()))
        return nodes.count_fits(request, free)

    def has_workplaces(self) -> bool:
        """Whether any node is there to run jobs; a cluster that grows by itself may begin empty."""
        return any(node.resources.get("CPU", 0.0) for node in self.nodes())

    def infeasible_reason(self, request: Request) -> str | None:
        """What the cluster could never give, in words; None if it could."""
        # Where all nodes leave, jobs wait for what comes after them.
        return nodes.infeasible_reason(request, self.nodes() or self._leaving)

    def _is_leaving(self, placement: Placement) -> bool:
        return any(node.id in placement.nodes for node in self._leaving)

    def _idle(self) -> list[Placement]:
        return [p for p in self._placements.values() if p.idle_since_s is not None]

    def _free(self, *, idle: bool = False) -> dict[str, dict[str, float]]:
        """What is free on each node; with `idle`, what warm workers hold counts as free, too."""
        shares = [
            Share(node_id, placement.request.resources)
            for placement in self._placements.values()
            for node_id in placement.nodes
            if not (idle and placement.idle_since_s is not None)
        ]
        return nodes.free_of(self.nodes(), shares)

    def _choose(self, request: Request, avoid: Collection[str]) -> list[Node] | None:
        return nodes.choose(request, self.nodes(), self._free(), avoid)

    def _make_room(self, request: Request, avoid: Collection[str]) -> list[Node] | None:
        """Ends idle workers, the longest idle first, until a job fits; none in vain."""
        room = nodes.choose(request, self.nodes(), self._free(idle=True), avoid)
        if room is None:
            return None
        there = {None, *(node.id for node in room)}
        for placement in sorted(self._idle(), key=lambda p: p.idle_since_s or 0.0):
            if there.intersection(placement.nodes):
                self.kill(placement)
                if chosen := self._choose(request, avoid):
                    return chosen
        return None

    def _new(self, name: str, request: Request, chosen: list[Node]) -> Placement | None:
        ids: list[str | None] = [node.id for node in chosen]
        placement = Placement(name, request, [], ids, [node.name for node in chosen])
        if request.ranks > 1:
            placement.group = gangs.reserve(
                self.prefix + name,
                [request.resources] * request.ranks,
                spread=request.spread,
                labels=[{"ray.io/node-id": node.id} for node in chosen],
            )
            if placement.group is None:
                return None
        for rank, node in enumerate(chosen):
            strategy: Any
            if placement.group:
                strategy = PlacementGroupSchedulingStrategy(placement.group, rank)
            else:
                strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
            placement.actors.append(
                self._worker.options(
                    name=gangs.rank_name(name, rank),
                    lifetime="detached",
                    max_restarts=0,
                    max_task_retries=0,
                    # run, status, stop and outcome may all be under way at once.
                    max_concurrency=6,
                    scheduling_strategy=strategy,
                    **request.options,
                ).remote(request.resources.get("GPU", 0))
            )
        self._placements[name] = placement
        return placement


def runs_alone(kind: str, spec: Mapping[str, Any], request: Request) -> bool:
    """Whether a job needs processes of its own: trainings do, which leave memory and process
    groups behind, unless they are plain ones of one process on a CPU."""
    plain = spec.get("optimisation", {}).get("engine") == "plain"
    return kind == "train" and not (
        plain and request.ranks == 1 and not request.resources.get("GPU")
    )

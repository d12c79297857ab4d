"""The pool of workers on Ray: the resources that they hold, and which are kept warm."""

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray.util import scheduling_strategies as strategies

from xsweep.orchestrator.runtime.placement import (
    ROUNDING,
    SHARED,
    Node,
    Placement,
    ResourceRequest,
    Resources,
    choose_nodes,
    count_fits,
    draining_nodes,
    find_group,
    free_resources,
    infeasible_reason,
    live_nodes,
    rank_name,
    reserve_gang,
)
from xsweep.orchestrator.runtime.preflight import Preflight
from xsweep.orchestrator.runtime.worker import Status, Worker

IDLE_S = 3.0
"""Time for which an idle worker is kept warm."""

ANSWER_S = 2.0
"""Time to wait for the answer to a status question; a silent worker may still be alive."""

UNLISTED = {"enable_task_events": False}
"""Options of a call that Ray's dashboard does not list: questions would bury the jobs there."""


class Pool:
    """The workers of one controller; an evaluation's worker is kept warm for the next one."""

    def __init__(
        self, worker: type = Worker, *, prefix: str = "", preflight: Preflight | None = None
    ) -> None:
        self.prefix = prefix
        """Prefix of the names of our placement groups, which distinguishes them from others."""
        # Once: every `ray.remote` exports the class again, and Ray keeps each of them for good.
        self._worker: Any = ray.remote(worker)
        self._preflight = preflight
        self._placements: dict[str, Placement] = {}
        self._nodes: list[Node] = []
        self._draining: list[Node] = []
        self._listed_s = 0.0

    def nodes(self) -> list[Node]:
        """List the live nodes that passed preflight and are not draining, at most 1 s old."""
        if time.monotonic() - self._listed_s > 1.0:
            draining, found = draining_nodes(), live_nodes()
            self._draining = [node for node in found if node.id in draining]
            found = [node for node in found if node.id not in draining]
            self._nodes = self._preflight.admit(found) if self._preflight else found
            self._listed_s = time.monotonic()
            for placement in self._idle():
                if self._is_draining(placement):
                    self.kill(placement)
        return self._nodes

    def is_draining(self, placement: Placement) -> bool:
        """Return whether a node of the placement will be removed."""
        self.nodes()
        return self._is_draining(placement)

    def _is_draining(self, placement: Placement) -> bool:
        return any(node.id in placement.nodes for node in self._draining)

    def infeasible_reason(self, request: ResourceRequest) -> str | None:
        """Explain why the cluster could never run a job; None if it could."""
        # While all nodes are draining, jobs wait for those that replace them.
        return infeasible_reason(request, self.nodes() or self._draining)

    def has_workplaces(self) -> bool:
        """Return whether any node runs jobs; an autoscaled cluster may begin without one."""
        return any(node.resources.get("CPU", 0.0) for node in self.nodes())

    def room(self, request: ResourceRequest | None) -> int:
        """Estimate how many such jobs could be placed now, counting idle workers as free.

        At least 1 where any CPU is free: the next job may need less than `request`.
        """
        free = self._free(idle=True)
        fits = count_fits(request, free) if request else 0
        return fits or int(any(amounts.get("CPU", 0.0) > ROUNDING for amounts in free.values()))

    def places(self, request: ResourceRequest) -> int:
        """Estimate how many such jobs the cluster runs at once when it runs nothing else."""
        return count_fits(request, free_resources(self.nodes(), ()))

    def take(
        self,
        name: str,
        request: ResourceRequest,
        *,
        alone: bool,
        model: str | None = None,
        excluded: Collection[str] = (),
    ) -> Placement | None:
        """Return a warm worker, else a new one; None while its resources are taken.

        A job that runs `alone` gets new processes under its name, which end with it. Among warm
        workers, one that has `model` loaded comes first. `excluded` holds host names.
        """
        if not alone:
            warm = [
                placement
                for placement in self._idle()
                if placement.request == request and placement.hosts[0] not in excluded
            ]
            for placement in sorted(warm, key=lambda each: each.model != model):
                placement.idle_since_s, placement.model = None, model
                return placement
        nodes = choose_nodes(request, self.nodes(), self._free(), excluded)
        nodes = nodes or self._make_room(request, excluded)
        if nodes is None:
            return None
        new = self._start(name if alone else f"{SHARED}{uuid.uuid4().hex[:8]}", request, nodes)
        if new:
            new.model = model
        return new

    def give_back(self, placement: Placement, *, reusable: bool) -> None:
        """Keep the worker of an ended job warm, or free its resources."""
        if reusable and not self._is_draining(placement):
            placement.idle_since_s = time.monotonic()
        else:
            self.kill(placement)

    def free_idle(self, *, after_s: float = IDLE_S) -> None:
        """Free the workers that have been idle for `after_s`."""
        for placement in self._idle():
            if time.monotonic() - (placement.idle_since_s or 0.0) >= after_s:
                self.kill(placement)

    def kill(self, placement: Placement) -> None:
        """Kill all ranks at once and free the resources that they reserved."""
        self._placements.pop(placement.name, None)
        self._listed_s = 0.0  # its node may be gone: the next job must not be placed there
        for actor in placement.actors:
            ray.kill(actor)
        if placement.group:
            ray.util.remove_placement_group(placement.group)

    def forget(self, placement: Placement) -> None:
        """Leave a placement to another controller, which has adopted its workers."""
        self._placements.pop(placement.name, None)

    def statuses(self, placements: Sequence[Placement]) -> dict[str, list[Status]]:
        """Ask workers for their status; by name, the answers of all ranks that came in time."""
        asked = [
            (each, [actor.status.options(**UNLISTED).remote() for actor in each.actors])
            for each in placements
        ]
        refs = [ref for _, of_ranks in asked for ref in of_ranks]
        if not refs:
            return {}
        answered = set(ray.wait(refs, num_returns=len(refs), timeout=ANSWER_S)[0])
        statuses = {}
        for placement, of_ranks in asked:
            if not answered.issuperset(of_ranks):
                continue
            try:
                answers: list[Status] = ray.get(of_ranks)
            except ray.exceptions.RayError:
                continue  # its outcome fails too, and is settled from there
            placement.nodes = [status["node_id"] for status in answers]
            placement.hosts = [status["node"] for status in answers]
            statuses[placement.name] = answers
        return statuses

    def survivors(self) -> dict[str, Any]:
        """Return every live worker of this namespace, by name."""
        found = {}
        for name in ray.util.list_named_actors():
            try:
                found[name] = ray.get_actor(name)
            except ValueError:
                continue  # it died between the two calls
        return found

    def adopt(
        self, name: str, request: ResourceRequest, actors: list[Any], host: str | None
    ) -> Placement:
        """Count the surviving workers of another controller as ours."""
        ids = {node.name: node.id for node in self.nodes()}
        hosts = (host or "").split(", ")
        by_rank = hosts if len(hosts) == request.ranks else hosts[:1] * request.ranks
        group = find_group(self.prefix + name) if request.ranks > 1 else None
        nodes = [ids.get(host) for host in by_rank]
        placement = Placement(name, request, actors, nodes, by_rank, group)
        self._placements[name] = placement
        return placement

    def remove_leaked_groups(self, owned: Collection[str]) -> list[str]:
        """Remove our placement groups that belong to none of these gangs; return their names."""
        table = ray.util.placement_group_table().values()
        names = {entry["name"] for entry in table if entry["state"] != "REMOVED"}
        leaked = {name for name in names if name.startswith(self.prefix)}
        leaked -= {self.prefix + name for name in owned}
        for name in leaked:
            if group := find_group(name):
                ray.util.remove_placement_group(group)
        return sorted(leaked)

    def _idle(self) -> list[Placement]:
        return [each for each in self._placements.values() if each.idle_since_s is not None]

    def _free(self, *, idle: bool = False) -> dict[str, Resources]:
        """Return what is free on each node; `idle` counts what warm workers hold as free, too."""
        held = (
            (node_id, placement.request.resources)
            for placement in self._placements.values()
            for node_id in placement.nodes
            if not (idle and placement.idle_since_s is not None)
        )
        return free_resources(self.nodes(), held)

    def _make_room(self, request: ResourceRequest, excluded: Collection[str]) -> list[Node] | None:
        """Kill idle workers, the longest idle first, until the job fits; none in vain."""
        room = choose_nodes(request, self.nodes(), self._free(idle=True), excluded)
        if room is None:
            return None
        chosen = {None, *(node.id for node in room)}
        for placement in sorted(self._idle(), key=lambda each: each.idle_since_s or 0.0):
            if chosen.intersection(placement.nodes):
                self.kill(placement)
                if nodes := choose_nodes(request, self.nodes(), self._free(), excluded):
                    return nodes
        return None

    def _start(self, name: str, request: ResourceRequest, nodes: list[Node]) -> Placement | None:
        ids: list[str | None] = [node.id for node in nodes]
        placement = Placement(name, request, [], ids, [node.name for node in nodes])
        if request.ranks > 1:
            placement.group = reserve_gang(self.prefix + name, request, nodes)
            if placement.group is None:
                return None
        for rank, node in enumerate(nodes):
            strategy: Any
            if placement.group:
                strategy = strategies.PlacementGroupSchedulingStrategy(placement.group, rank)
            else:
                strategy = strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
            placement.actors.append(
                self._worker.options(
                    name=rank_name(name, rank),
                    lifetime="detached",
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=6,  # run, status, stop and outcome may overlap
                    scheduling_strategy=strategy,
                    **request.options,
                ).remote(request.resources.get("GPU", 0))
            )
        self._placements[name] = placement
        return placement


def runs_alone(kind: str, request: ResourceRequest) -> bool:
    """Return whether a job needs new processes.

    Trainings on GPUs or on several ranks do, since they leave memory and process groups behind.
    """
    return kind == "train" and (request.ranks > 1 or bool(request.resources.get("GPU")))

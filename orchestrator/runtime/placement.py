"""Placement: match resource requests to nodes, reserve gangs, and exclude nodes that fail.

The ranks of a training are actors in one placement group, so that all of them start or none. What
a node has left is counted from this controller's own placements: Ray's figures lag behind.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

Resources = dict[str, float]

SHARED = "worker "
"""Prefix of the names of workers that run one job after the other."""

FAILURES_TO_EXCLUDE = 3
"""Different jobs in a row that must fail on a node, none succeeding, until it is excluded."""

NODE_FAILURES = frozenset({"NODE", "INFRA", "HANG", "OOM_HOST", "UNKNOWN"})
"""Failure classes that the machine may have caused."""

AVOID_S = 120.0
"""Time for which a node is excluded that did not answer (by then Ray has given it up), or whose
memory others have filled."""

ROUNDING = 1e-6
"""Resources are fractions of a GPU: 1 - 0.7 - 0.3 must not refuse what fits exactly."""

RESERVE_S = 2.0
"""Time to wait for a placement group whose resources are free; otherwise try again later."""

_RAY_NAMES = {"cpus": "CPU", "gpus": "GPU", "memory_bytes": "memory"}


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """Resources of each of `ranks` processes, on nodes that have the labels."""

    resources: Resources
    """By Ray's names."""
    ranks: int = 1
    spread: bool = False
    """True: every rank needs a node of its own."""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of an actor that reserves the resources of one rank."""
        built_in = _RAY_NAMES.values()
        others = {key: need for key, need in self.resources.items() if key not in built_in}
        return {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "memory": self.resources.get("memory"),
            "resources": others or None,
        }

    def __str__(self) -> str:
        needs = ", ".join(f"{need:g} {key}" for key, need in sorted(self.resources.items()))
        labels = ", ".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        ranks = f"{self.ranks} times " if self.ranks > 1 else ""
        apart = " on nodes of their own" if self.spread and self.ranks > 1 else ""
        return f"{ranks}{needs}{apart}{f' on a node with {labels}' if labels else ''}"


def request_of(stored: Mapping[str, Any]) -> ResourceRequest:
    """Return a job's stored `resources` as a request; one CPU by default."""
    plain = {
        _RAY_NAMES.get(key, key): float(value)
        for key, value in stored.items()
        if value and key not in ("ranks", "spread", "labels")
    }
    return ResourceRequest(
        resources={"CPU": 1.0, **plain},
        ranks=int(stored.get("ranks") or 1),
        spread=bool(stored.get("spread")),
        labels=dict(stored.get("labels") or {}),
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    """A live node of the cluster."""

    id: str
    name: str
    """Host name."""
    resources: Resources
    labels: dict[str, str]

    def has(self, labels: Mapping[str, str]) -> bool:
        """Return whether the node has every label; `eu|us` accepts either value."""
        return all(self.labels.get(key) in value.split("|") for key, value in labels.items())


@dataclass
class Placement:
    """The worker of a job, or the ranks of its gang, and the resources that they hold."""

    name: str
    request: ResourceRequest
    actors: list[Any]
    """By rank."""
    nodes: list[str | None]
    """Node ids by rank; None for an adopted worker that has not reported its node yet."""
    hosts: list[str] = field(default_factory=list)
    """Host names by rank."""
    group: PlacementGroup | None = None
    idle_since_s: float | None = None
    model: str | None = None
    """Run whose model an evaluation loaded here last."""

    @property
    def node(self) -> str:
        """Host names, each once."""
        return ", ".join(dict.fromkeys(self.hosts))

    @property
    def shared(self) -> bool:
        """True: it runs one job after the other. False: its name is its only job's."""
        return self.name.startswith(SHARED)


def rank_name(gang: str, rank: int) -> str:
    """Return the name of a rank's actor; the first rank has the gang's name."""
    return gang if rank == 0 else f"{gang} rank {rank}"


def live_nodes() -> list[Node]:
    """List the nodes that Ray believes to be alive."""
    return [
        Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            resources=dict(node["Resources"]),
            labels=dict(node.get("Labels") or {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that will be removed."""
    # Ray has no public name for this; Ray Train calls the same function.
    return set(ray._private.state.state.get_draining_nodes())


def choose_nodes(
    request: ResourceRequest,
    nodes: Sequence[Node],
    free: Mapping[str, Resources],
    excluded: Collection[str] = (),
) -> list[Node] | None:
    """Choose a node for each rank, the fullest that fits first; None where one finds no room.

    `free` is by node id, `excluded` holds host names.
    """
    left = {node_id: dict(amounts) for node_id, amounts in free.items()}
    usable = [node for node in nodes if node.name not in excluded and node.has(request.labels)]
    usable.sort(key=lambda node: (left[node.id].get("GPU", 0.0), left[node.id].get("CPU", 0.0)))
    chosen: list[Node] = []
    for _ in range(request.ranks):
        for node in usable:
            if request.spread and node in chosen:
                continue
            amounts = left[node.id]
            needs = request.resources.items()
            if all(amounts.get(key, 0.0) >= need - ROUNDING for key, need in needs):
                break
        else:
            return None
        chosen.append(node)
        for key, need in request.resources.items():
            left[node.id][key] = left[node.id].get(key, 0.0) - need
    return chosen


def free_resources(
    nodes: Sequence[Node], held: Iterable[tuple[str | None, Resources]]
) -> dict[str, Resources]:
    """Return what is left of each node, by id; held resources of unknown place count on all."""
    free = {node.id: dict(node.resources) for node in nodes}
    for node_id, resources in held:
        for amounts in [free.get(node_id, {})] if node_id else free.values():
            for key, need in resources.items():
                amounts[key] = amounts.get(key, 0.0) - need
    return free


def count_fits(request: ResourceRequest, free: Mapping[str, Resources]) -> int:
    """Estimate how many such requests fit; labels, `spread` and a gang's remainder are ignored."""

    def fits(amounts: Resources) -> int:
        shares = (amounts.get(key, 0.0) / need for key, need in request.resources.items() if need)
        return max(0, int(min(shares, default=1.0) + ROUNDING))

    return sum(fits(amounts) for amounts in free.values()) // request.ranks


def infeasible_reason(request: ResourceRequest, nodes: Sequence[Node]) -> str | None:
    """Explain why these nodes could not run a job even if all were idle; None if they could."""
    if choose_nodes(request, nodes, free_resources(nodes, ())):
        return None
    if not nodes:
        return f"asks for {request}, and there is no node that runs jobs: add one"
    labelled = [node for node in nodes if node.has(request.labels)]
    if not labelled:
        labels = {f"{key}={value}" for node in nodes for key, value in node.labels.items()}
        known = sorted(label for label in labels if not label.startswith("ray.io/node-"))
        return (
            f"asks for {request}, and no node has these labels (there are: "
            f"{', '.join(known) or 'none'}): change `resources:` or add a node"
        )
    largest = {
        key: max(each.resources.get(key, 0.0) for each in labelled) for key in request.resources
    }
    has = ", ".join(f"{amount:g} {key}" for key, amount in sorted(largest.items()))
    has += f", and there are {len(labelled)}" if request.ranks > 1 else ""
    return f"asks for {request}; the largest node has {has}: change `resources:` or add a node"


def reserve_gang(name: str, request: ResourceRequest, nodes: list[Node]) -> PlacementGroup | None:
    """Reserve a bundle per rank on the chosen nodes; None while their resources are taken."""
    group = ray.util.placement_group(
        [request.resources] * request.ranks,
        strategy="STRICT_SPREAD" if request.spread else "PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=[{"ray.io/node-id": node.id} for node in nodes],
    )
    if group.wait(RESERVE_S):
        return group
    ray.util.remove_placement_group(group)
    return None


def find_group(name: str) -> PlacementGroup | None:
    """Return the placement group of that name in this namespace, if it exists."""
    try:
        return ray.util.get_placement_group(name)
    except ValueError:
        return None


class NodeExclusions:
    """Nodes on which job after job fails. Kept in memory: a new controller starts afresh."""

    def __init__(self) -> None:
        self._failed: dict[str, set[int]] = {}
        self._avoided: dict[str, float] = {}

    def avoid(self, host: str) -> None:
        """Exclude a node for `AVOID_S`."""
        self._avoided[host] = time.monotonic() + AVOID_S

    def record(self, host: str, job_id: int, failure: str | None) -> bool:
        """Record how a job ended on a node. True: this failure excludes the node."""
        if failure is None:
            self._failed.pop(host, None)
            return False
        if failure not in NODE_FAILURES:
            return False
        jobs = self._failed.setdefault(host, set())
        before = len(jobs)
        jobs.add(job_id)
        return before < FAILURES_TO_EXCLUDE <= len(jobs)

    def excluded(self, nodes: Sequence[Node]) -> set[str]:
        """Return the host names to exclude; none of them where no other node would remain."""
        now_s = time.monotonic()
        hosts = {host for host, jobs in self._failed.items() if len(jobs) >= FAILURES_TO_EXCLUDE}
        hosts |= {host for host, until_s in self._avoided.items() if until_s > now_s}
        return hosts if {node.name for node in nodes} - hosts else set()

"""The nodes of the cluster: what they have, what fits where, and which are left alone."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ray

from orchestrator.requests import Request, Resources

STRIKES = 3
"""So many different jobs in a row must fail on a node, none succeeding, until it is left alone."""
SUSPICIOUS = frozenset({"NODE", "INFRA", "HANG", "OOM_HOST", "UNKNOWN"})
"""Failures that may be the machine's."""
REST_S = 120.0
"""How long a node rests that did not answer; by then Ray has given it up, or it is back."""
ROUNDING = 1e-6
"""Resources are fractions of a GPU: 1 - 0.7 - 0.3 must not refuse what fits exactly."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of the cluster."""

    id: str
    name: str
    """Its host's."""
    resources: Resources
    labels: dict[str, str]


class Share(NamedTuple):
    """What one process holds of one node."""

    node_id: str | None
    """None: of an adopted process that has not told yet where it runs."""
    resources: Resources


def living() -> list[Node]:
    """The nodes that Ray believes to be alive."""
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


def leaving() -> set[str]:
    """Ids of the nodes that will be taken away: whoever does it has told them to drain.

    Ray has no public name for this question; its own Train asks it in the same words.
    """
    return set(ray._private.state.state.get_draining_nodes())


def never_fits(request: Request, nodes: Sequence[Node]) -> str | None:
    """What these nodes could not give even if all were idle, in words; None if they could."""
    idle = {node.id: dict(node.resources) for node in nodes}
    if choose(request, nodes, idle):
        return None
    if not nodes:
        return f"asks for {request}, and there is no node that runs jobs: add one"
    labelled = [node for node in nodes if _bears(node, request.labels)]
    if not labelled:
        known = sorted(
            {
                f"{key}={value}"
                for node in nodes
                for key, value in node.labels.items()
                if not key.startswith("ray.io/node-")
            }
        )
        return (
            f"asks for {request}, and no node has these labels (there are: "
            f"{', '.join(known) or 'none'}): change `resources:` or add a node"
        )
    largest = {
        key: max(node.resources.get(key, 0.0) for node in labelled) for key in request.resources
    }
    has = ", ".join(f"{amount:g} {key}" for key, amount in sorted(largest.items()))
    count = f", and there are {len(labelled)}" if request.ranks > 1 else ""
    return (
        f"asks for {request}; the largest node has {has}{count}: change `resources:` or add a node"
    )


def choose(
    request: Request,
    nodes: Sequence[Node],
    free: Mapping[str, Resources],
    avoid: Collection[str] = (),
) -> list[Node] | None:
    """A node for each rank, the fullest that fits first; None where some rank finds none.

    `free` is by node's id, `avoid` holds names of nodes to leave alone.
    """
    left = {node_id: dict(amounts) for node_id, amounts in free.items()}
    usable = [n for n in nodes if n.name not in avoid and _bears(n, request.labels)]
    usable.sort(key=lambda node: (left[node.id].get("GPU", 0.0), left[node.id].get("CPU", 0.0)))
    chosen: list[Node] = []
    for _ in range(request.ranks):
        for node in usable:
            if request.spread and node in chosen:
                continue
            if fits(request.resources, left[node.id]):
                break
        else:
            return None
        chosen.append(node)
        for key, need in request.resources.items():
            left[node.id][key] = left[node.id].get(key, 0.0) - need
    return chosen


def fits(needs: Resources, free: Resources) -> bool:
    """Whether a node with so much free has room."""
    return all(free.get(key, 0.0) >= need - ROUNDING for key, need in needs.items())


def free_of(nodes: Sequence[Node], shares: Sequence[Share]) -> dict[str, Resources]:
    """What is left of each node after what is held; what has no known place counts on all."""
    free = {node.id: dict(node.resources) for node in nodes}
    for node_id, resources in shares:
        for amounts in [free.get(node_id, {})] if node_id else free.values():
            for key, need in resources.items():
                amounts[key] = amounts.get(key, 0.0) - need
    return free


class Strikes:
    """Which nodes fail job after job. Kept by this controller only: a new one forgives."""

    def __init__(self) -> None:
        self._failed: dict[str, set[int]] = {}
        self._resting: dict[str, float] = {}

    def rest(self, node: str) -> None:
        """Leave a node alone for a while that does not answer: Ray needs longer to give it up."""
        self._resting[node] = time.monotonic() + REST_S

    def count(self, node: str, job_id: int, failure: str | None) -> bool:
        """Note how a job ended on a node; whether the node is to be left alone from now on."""
        if failure is None:
            self._failed.pop(node, None)
            return False
        if failure not in SUSPICIOUS:
            return False
        jobs = self._failed.setdefault(node, set())
        before = len(jobs)
        jobs.add(job_id)
        return before < STRIKES <= len(jobs)

    def avoid(self, nodes: Sequence[Node]) -> set[str]:
        """Names of the nodes to leave alone; none of them where no other node would be left."""
        now_s = time.monotonic()
        struck = {name for name, jobs in self._failed.items() if len(jobs) >= STRIKES}
        struck |= {name for name, until_s in self._resting.items() if until_s > now_s}
        names = {node.name for node in nodes}
        return struck if names - struck else set()


def _bears(node: Node, labels: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) in value.split("|") for key, value in labels.items())


def count_fits(request: Request, free: Mapping[str, Mapping[str, float]]) -> int:
    """How many such requests the free resources of nodes would hold, about: labels, the spreading
    of ranks and what a gang leaves over are not looked at."""

    def fits(amounts: Mapping[str, float]) -> int:
        shares = (amounts.get(key, 0.0) / need for key, need in request.resources.items() if need)
        return max(0, int(min(shares, default=1.0) + ROUNDING))

    return sum(fits(amounts) for amounts in free.values()) // request.ranks

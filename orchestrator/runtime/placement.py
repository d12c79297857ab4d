"""The nodes of the cluster: what they have, what fits where, and which are left alone.

What a job asks of the cluster, under Ray's names.

Gangs: the ranks of one training as actors in one placement group, all placed or none.

One actor per rank meets the others at an address of the first one's node. Whatever ends one rank
ends the attempt: the others would wait for it in an exchange that never comes.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup

from xsweep.orchestrator.runtime.worker import Outcome

Resources = dict[str, float]


_NAMES = {"cpus": "CPU", "gpus": "GPU", "memory_bytes": "memory"}


_BUILT_IN = frozenset(_NAMES.values())


@dataclass(frozen=True, kw_only=True)
class Request:
    """`resources` of each of `ranks` processes, on nodes that bear the labels."""

    resources: Resources
    ranks: int = 1
    spread: bool = False
    """Whether every rank needs a node of its own."""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of an actor that reserves what one rank needs."""
        others = {key: need for key, need in self.resources.items() if key not in _BUILT_IN}
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


def request_of(asked: Mapping[str, Any]) -> Request:
    """A job's stored `resources` as a request; one CPU where nothing is said."""
    plain = {
        _NAMES.get(key, key): float(value)
        for key, value in asked.items()
        if value and key not in ("ranks", "spread", "labels")
    }
    return Request(
        resources={"CPU": 1.0, **plain},
        ranks=int(asked.get("ranks") or 1),
        spread=bool(asked.get("spread")),
        labels=dict(asked.get("labels") or {}),
    )


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


def infeasible_reason(request: Request, nodes: Sequence[Node]) -> str | None:
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


PLACED_S = 2.0
"""How long to wait for a group whose resources are free; later is tried again from the start."""


TELL_S = 3.0
"""How long the other ranks have to say why, once one has failed; often it is the victim."""


def rank_name(gang: str, rank: int) -> str:
    """The name of a rank's actor; the first one bears the gang's."""
    return gang if rank == 0 else f"{gang} rank {rank}"


def reserve(
    name: str, bundles: Sequence[dict[str, float]], *, spread: bool, labels: Sequence[dict] | None
) -> PlacementGroup | None:
    """A placed group of that name with a bundle per rank; None while its resources are taken."""
    group = ray.util.placement_group(
        list(bundles),
        strategy="STRICT_SPREAD" if spread else "PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=list(labels) if labels else None,
    )
    if group.wait(PLACED_S):
        return group
    ray.util.remove_placement_group(group)
    return None


def find_group(name: str) -> PlacementGroup | None:
    """The group of that name in this namespace, if it still stands."""
    try:
        return ray.util.get_placement_group(name)
    except ValueError:
        return None


def leaked(prefix: str, owned: set[str]) -> list[str]:
    """Names of standing groups that begin with the prefix and belong to none of these gangs."""
    table = ray.util.placement_group_table()
    standing = [entry["name"] for entry in table.values() if entry["state"] != "REMOVED"]
    return sorted(name for name in standing if name.startswith(prefix) and name not in owned)


def verdict(outcomes: Mapping[int, Outcome], ranks: int) -> Outcome:
    """How an attempt ended, from what its ranks said; NODE for each that died without a word.

    A rank that lost a peer fails, too (as NODE): whoever knows a cause of its own is believed
    first. Worked: {0: NODE "connection closed", 1: OOM_GPU} of 2 ranks gives OOM_GPU.
    """
    failed = [(rank, each) for rank, each in outcomes.items() if each["state"] == "failed"]
    if failed:
        rank, chosen = min(failed, key=lambda pair: (_vague(pair[1]), pair[0]))
        if ranks == 1:
            return chosen
        return {**chosen, "reason": f"rank {rank} of {ranks}: {chosen['reason']}"}
    stopped = [each for each in outcomes.values() if each["state"] == "stopped"]
    return stopped[0] if stopped else outcomes[0]


def _vague(outcome: Outcome) -> int:
    """0 for a cause of its own, 1 for a death or a lost peer, 2 where nothing is known."""
    return {"NODE": 1, "UNKNOWN": 2}.get(outcome["failure"] or "UNKNOWN", 0)


def survivors(actors: Mapping[str, Any], gang: str, ranks: int) -> list[Any] | None:
    """The actors of a gang by rank; None where one of them is gone."""
    found = [actors.get(rank_name(gang, rank)) for rank in range(ranks)]
    return found if all(found) else None

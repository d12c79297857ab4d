"""Gangs: the ranks of one training as actors in one placement group, all placed or none.

One actor per rank meets the others at an address of the first one's node. Whatever ends one rank
ends the attempt: the others would wait for it in an exchange that never comes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from orchestrator.workers import Outcome

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

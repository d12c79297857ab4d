"""A running attempt: start its workers, collect how its ranks end, decide the attempt's outcome.

Ranks meet at an address of the first one's node. A rank that dies ends the whole attempt: the
others would wait for it in a collective operation that never completes.
"""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from xsweep.db import jobs
from xsweep.errors import first_line
from xsweep.orchestrator.runtime.placement import Placement, ResourceRequest, rank_name, request_of
from xsweep.orchestrator.runtime.pool import UNLISTED
from xsweep.orchestrator.runtime.worker import Outcome, Task
from xsweep.orchestrator.storage.store import Store

log = logging.getLogger("xsweep")

PEER_REPORT_S = 3.0
"""Time for the other ranks to report after one has failed: often the first one is the victim."""


@dataclass
class RunningAttempt:
    """An attempt that this controller holds, on the workers that run it."""

    job: jobs.Claim
    folder: str
    placement: Placement
    awaited: dict[ray.ObjectRef, int]
    """Ranks that have not ended, by the reference to their outcome."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """By rank."""
    answered: bool = False
    """True once its workers have answered a status question."""
    silent_s: float = 0.0
    """Time since the last answer, as far as this controller was asking."""
    draining: bool = False
    """True once it was asked to stop because its node will be removed."""
    began_s: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """Ask all ranks to save a checkpoint and stop."""
        for actor in self.placement.actors:
            actor.stop.remote()

    def drain(self) -> None:
        """Ask all ranks to stop because their node will be removed."""
        if not self.draining:
            log.info("draining  %s: its node will be removed", self.job.name)
        self.draining = True
        self.stop()  # at every call: a request that arrives before the task begins is lost

    def collect(self, ref: ray.ObjectRef) -> None:
        """Record how a rank ended."""
        rank = self.awaited.pop(ref)
        try:
            outcome: Outcome | None = ray.get(ref)
        except ray.exceptions.OutOfMemoryError as error:
            name = rank_name(self.placement.name, rank)
            outcome = out_of_memory(str(error), name, self.placement.request)
        except ray.exceptions.RayError as error:
            failure = "PREEMPTED" if self.draining or was_preempted(error) else "NODE"
            reason = f"the worker died: {first_line(error)}"
            outcome = Outcome(state="failed", failure=failure, reason=reason)
        # None: adopted from a controller that was killed between starting the worker and calling it
        not_begun = Outcome(state="stopped", failure=None, reason="it had not begun")
        self.outcomes[rank] = outcome or not_begun

    @property
    def ended(self) -> bool:
        """True once the first rank has ended or any has failed: the others follow."""
        states = [outcome["state"] for outcome in self.outcomes.values()]
        return 0 in self.outcomes or any(state != "finished" for state in states)

    def outcome(self) -> Outcome:
        """Return how the attempt ended, after waiting a moment for the other ranks' reports."""
        if self.awaited:
            refs = list(self.awaited)
            ended, _ = ray.wait(refs, num_returns=len(refs), timeout=PEER_REPORT_S)
            for ref in ended:
                self.collect(ref)
        outcome = decide(self.outcomes, len(self.placement.actors))
        if self.draining and outcome["state"] == "stopped":
            return {**outcome, "reason": "its node will be removed"}
        return outcome


def decide(outcomes: Mapping[int, Outcome], ranks: int) -> Outcome:
    """Return the outcome of an attempt from its ranks' outcomes, given by rank.

    A rank that lost a peer fails too, with NODE, so a failure with a cause of its own comes first:
    {0: NODE "connection closed", 1: OOM_GPU} is OOM_GPU.
    """
    failed = [(rank, each) for rank, each in outcomes.items() if each["state"] == "failed"]
    if failed:
        vagueness = {"NODE": 1, "UNKNOWN": 2, None: 2}
        rank, chosen = min(failed, key=lambda each: (vagueness.get(each[1]["failure"], 0), each[0]))
        if ranks == 1:
            return chosen
        return {**chosen, "reason": f"rank {rank} of {ranks}: {chosen['reason']}"}
    stopped = [each for each in outcomes.values() if each["state"] == "stopped"]
    return stopped[0] if stopped else outcomes[0]


def out_of_memory(report: str, name: str, request: ResourceRequest) -> Outcome:
    """Return the outcome of a rank that Ray killed because the memory of its node was full.

    OOM_HOST if the rank took more than it requested or, without a request, than all other
    processes; NODE_FULL if others did. `report` is Ray's message, in which `name` is the rank's
    actor; one in other words is OOM_HOST.
    """
    node = re.search(r"was ([\d.]+)GB used / ([\d.]+)GB limit", report)
    own = re.search(rf"task name={re.escape(name)}:.*actual memory used=([\d.]+)GB", report)
    if not (node and own):
        return Outcome(state="failed", failure="OOM_HOST", reason=report.splitlines()[0])
    used, limit, taken = (float(each) for each in (*node.groups(), *own.groups()))
    requested = request.resources.get("memory", 0.0) / 2**30
    failure = "OOM_HOST" if taken > (requested or used / 2) else "NODE_FULL"
    reason = (
        f"Ray killed it when {used:g} of {limit:g} GB of its node's memory were in use, "
        f"{taken:g} GB by itself, which requested {f'{requested:g} GB' if requested else 'none'}"
    )
    return Outcome(state="failed", failure=failure, reason=reason)


def was_preempted(error: ray.exceptions.RayError) -> bool:
    """Return whether an actor died, or never began, because its node was removed."""
    if isinstance(error, ray.exceptions.ActorUnschedulableError):
        return True
    return isinstance(error, ray.exceptions.RayActorError) and error.preempted


def task_of(claim: jobs.Claim, store: Store, folder: str) -> Task:
    """Return an attempt as its worker gets it: absolute paths, nothing about the database."""
    out = store.resolve(folder)
    return {
        "job_id": claim.job_id,
        "token": claim.token,
        "kind": claim.kind,
        "name": claim.name,
        "spec": claim.spec,
        "inputs": {role: str(store.resolve(at)) for role, at in claim.inputs.items()},
        "out": str(out),
        "log": f"{out}.log",
        "previous": [str(store.resolve(at)) for at in claim.previous],
        "root": str(store.root),
        "remote": store.url,
    }


def start_task(placement: Placement, task: Task) -> dict[ray.ObjectRef, int]:
    """Start a task on all ranks; returns the rank by the reference to its outcome.

    Ray's dashboard shows it under the job's name.
    """
    actors, ranks = placement.actors, len(placement.actors)
    # Passed on as a reference: Ray resolves it once the first rank has started.
    meeting = actors[0].meeting_point.options(**UNLISTED).remote() if ranks > 1 else None
    refs = {}
    for rank, actor in enumerate(actors):
        name = f"{task['name']} (rank {rank} of {ranks})" if ranks > 1 else task["name"]
        refs[actor.run.options(name=name).remote(task, rank, ranks, meeting)] = rank
    return refs


def names_of(claim: jobs.Claim) -> list[str]:
    """Return the actor names of an attempt, by rank."""
    ranks = request_of(claim.resources).ranks
    return [rank_name(claim.actor or "", rank) for rank in range(ranks)]


def actors_of(claim: jobs.Claim, workers: Mapping[str, Any]) -> list[Any] | None:
    """Return the live actors of an attempt by rank; None where one of them is gone."""
    found = [workers.get(name) for name in names_of(claim)]
    return found if all(found) else None

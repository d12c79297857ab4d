"""A job that a worker, or a gang of them, has in hand: what is awaited, and how it ended."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from xsweep.db import jobs
from xsweep.errors import first_line
from xsweep.orchestrator.runtime import placement as gangs
from xsweep.orchestrator.runtime.placement import request_of
from xsweep.orchestrator.runtime.pool import Placement
from xsweep.orchestrator.runtime.worker import Outcome, Task
from xsweep.orchestrator.storage.store import Store

log = logging.getLogger("xsweep")


@dataclass
class Assignment:
    """A job in hand; `awaited` are the answers of those ranks that have not ended."""

    job: jobs.Claim
    folder: str
    placement: Placement
    awaited: dict[ray.ObjectRef, int]
    """Rank by the reference to its outcome."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    answered: bool = False
    silent_s: float = 0.0
    """How long its workers have been asked how they are and did not answer."""
    leaving: bool = False
    """Whether it was told to save and leave, because its node will be taken away."""
    began_s: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """Ask all ranks to save what they have and leave."""
        for actor in self.placement.actors:
            actor.stop.remote()

    def leave(self) -> None:
        """Save and leave, because the node will be taken away."""
        if not self.leaving:
            log.info("leaving   %s: its node will be taken away", self.job.name)
        self.leaving = True
        # Each time that it is said: a word that comes before the work has begun is lost.
        self.stop()

    def hear(self, ref: ray.ObjectRef) -> None:
        """Take in how a rank ended."""
        rank = self.awaited.pop(ref)
        try:
            outcome: Outcome | None = ray.get(ref)
        except ray.exceptions.RayError as error:
            reason = f"the worker died: {first_line(error)}"
            taken = self.leaving or was_preempted(error)
            failure = "PREEMPTED" if taken else "NODE"
            outcome = {"state": "failed", "failure": failure, "reason": reason}
        # None: adopted from a controller that was killed between starting the worker and calling it
        self.outcomes[rank] = outcome or {
            "state": "stopped",
            "failure": None,
            "reason": "it had not begun",
        }

    @property
    def ended(self) -> bool:
        """Whether the first rank has ended, or any has failed: the others only follow."""
        return 0 in self.outcomes or any(
            each["state"] != "finished" for each in self.outcomes.values()
        )

    def verdict(self) -> Outcome:
        """How the attempt ended; waits a moment for the other ranks to tell their side."""
        if self.awaited:
            refs = list(self.awaited)
            told, _ = ray.wait(refs, num_returns=len(refs), timeout=gangs.TELL_S)
            for ref in told:
                self.hear(ref)
        outcome = gangs.verdict(self.outcomes, len(self.placement.actors))
        if self.leaving and outcome["state"] == "stopped":
            return {**outcome, "reason": "its node will be taken away"}
        return outcome


def task_of(claim: jobs.Claim, store: Store, folder: str) -> Task:
    """The attempt as a worker gets it: absolute paths, and no word of the database."""
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


def begin(placement: Placement, task: Task) -> dict[ray.ObjectRef, int]:
    """Set the workers to the task: one, or all ranks, which meet where the first one says."""
    actors, name = placement.actors, title(task["kind"], task["spec"])
    ranks = len(actors)
    # Passed on unread: Ray hands it to the others when the first one is up.
    meeting = actors[0].meeting_point.remote() if ranks > 1 else None
    refs = {}
    for rank, actor in enumerate(actors):
        named = actor.run.options(name=name if ranks == 1 else f"{name} (rank {rank} of {ranks})")
        refs[named.remote(task, rank, ranks, meeting)] = rank
    return refs


def title(kind: str, spec: Mapping[str, Any]) -> str:
    """What Ray's dashboard calls the task of a job: its kind and collection, "evaluate scifact".

    Not the job's own name: every process keeps metrics of each name that a task ever had, and
    sends all of them again and again. A training's name is that of its actor, which costs nothing.
    """
    collection = spec.get("collection") or {}
    return " ".join(filter(None, (kind, collection.get("name"))))


def actors_of(held: jobs.Claim, workers: Mapping[str, Any]) -> list[Any] | None:
    """The living processes of an attempt by rank; None where one of them is gone."""
    return gangs.survivors(workers, held.actor or "", request_of(held.resources).ranks)


def names_of(held: jobs.Claim) -> set[str]:
    """The names of an attempt's processes."""
    ranks = request_of(held.resources).ranks
    return {gangs.rank_name(held.actor or "", rank) for rank in range(ranks)}


def was_preempted(error: ray.exceptions.RayError) -> bool:
    """Whether Ray says that an actor died because its node was taken away."""
    return isinstance(error, ray.exceptions.RayActorError) and error.preempted

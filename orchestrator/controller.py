"""The controller: claims ready jobs, places them on Ray, keeps their leases, accepts their results.

It is the only process that talks to the database. Killing it kills no job: workers are detached
actors, and the next controller adopts those that live and the folders that are finished.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from sqlalchemy import Engine

from db import controllers, jobs
from evaluator.manifest import is_finished
from orchestrator.accept import accept
from orchestrator.pool import Placement, Pool, as_ray_resources
from orchestrator.store import attempt_folder, resolve
from orchestrator.workers import Outcome, Task
from xsweep import XsweepError

log = logging.getLogger("xsweep")

LEASE_S = 60.0
REFRESH_S = 3.0
"""How often progress and leases are written; a lease survives many that fail."""
PLACE_S = 120.0
"""How long a worker may take to answer for the first time before its job goes back."""


@dataclass
class Assignment:
    """A job that a worker of this controller has in hand."""

    job_id: int
    token: int
    kind: str
    name: str
    folder: str
    placement: Placement
    outcome: ray.ObjectRef
    began_s: float = field(default_factory=time.monotonic)
    answered: bool = False


class Controller:
    """One controller's view of its workers; the truth is in the database."""

    def __init__(self, engine: Engine, store: Path, *, dashboard: str | None = None) -> None:
        self.engine = engine
        self.store = store
        self.owner = uuid.uuid4().hex
        self.pool = Pool()
        self.assigned: list[Assignment] = []
        self.unplaced: jobs.Claim | None = None
        """A claimed job whose resources are not free yet; it waits at the head of the queue."""
        self._refreshed_s = 0.0
        controllers.register(
            engine,
            owner=self.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            dashboard_url=dashboard,
        )

    @property
    def busy(self) -> bool:
        """Whether some job is in hand."""
        return bool(self.assigned or self.unplaced)

    def step(self, wait_s: float = 1.0) -> None:
        """Start what fits, wait a moment for something to end, settle it, keep the leases."""
        self._place_ready()
        self._settle_ended(wait_s)
        if time.monotonic() - self._refreshed_s > REFRESH_S:
            self._refresh()
            self._recover()

    def adopt(self) -> None:
        """Take over what dead controllers left: live workers, finished folders, lost jobs."""
        alive = {controller.owner for controller in controllers.live(self.engine)} - {self.owner}
        workers = self.pool.survivors()
        for attempt in jobs.running(self.engine):
            actor, folder = attempt.actor or "", attempt.folder or ""
            worker = workers.pop(actor, None)
            if attempt.owner in alive or not jobs.adopt(
                self.engine,
                job_id=attempt.job_id,
                token=attempt.token,
                old_owner=attempt.owner,
                new_owner=self.owner,
                lease_s=LEASE_S,
            ):
                continue
            if worker is None:
                self._settle_lost(attempt)
                continue
            log.info("adopted   %s", attempt.name)
            placement = self.pool.adopt(actor, worker, as_ray_resources(attempt.resources))
            self.assigned.append(
                Assignment(
                    job_id=attempt.job_id,
                    token=attempt.token,
                    kind=attempt.kind,
                    name=attempt.name,
                    folder=folder,
                    placement=placement,
                    outcome=worker.outcome.options(name=attempt.name).remote(attempt.token),
                    answered=True,
                )
            )
        if not alive:
            for worker in workers.values():
                ray.kill(worker)

    def drain(self, grace_s: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Ask every worker to save and leave; jobs go back to ready and are not charged.

        After `grace_s`, or as soon as `hurry` says so, those that are left are killed.
        """
        for assignment in self.assigned:
            assignment.placement.actor.stop.remote()
        deadline = time.monotonic() + grace_s
        while self.assigned and time.monotonic() < deadline and not hurry():
            self._settle_ended(0.5)
            self._refresh()
        self.abandon("the controller was told to leave")

    def abandon(self, reason: str) -> None:
        """Kill every worker at once and give its job back uncharged."""
        for assignment in self.assigned:
            self.pool.kill(assignment.placement)
            self._release(assignment.job_id, assignment.token, reason)
        self.assigned.clear()
        if self.unplaced:
            self._release(self.unplaced.job_id, self.unplaced.token, reason)
            self.unplaced = None

    def close(self) -> None:
        """Free the warm workers and leave the list of controllers."""
        self.pool.clear()
        controllers.unregister(self.engine, self.owner)

    def _place_ready(self) -> None:
        while self.unplaced or self.pool.has_room():
            if self.unplaced is None:
                claims = jobs.claim(self.engine, owner=self.owner, limit=1, lease_s=LEASE_S)
                if not claims:
                    break
                self.unplaced = claims[0]
            if not self._place(self.unplaced):
                break
            self.unplaced = None
        self.pool.free_idle()

    def _place(self, claim: jobs.Claim) -> bool:
        """Give the job to a worker; False if its resources are not free at the moment."""
        resources = as_ray_resources(claim.resources)
        missing = self.pool.never_fits(resources)
        if missing:
            self._fail(claim.job_id, claim.token, claim.name, "CONFIG", missing)
            return True
        unique = f"{claim.name} #{claim.job_id}.{claim.token}"
        placement = self.pool.take(claim.kind, unique, resources)
        if placement is None:
            return False
        folder = attempt_folder(claim.kind, claim.identity, claim.token)
        out = resolve(self.store, folder)
        task: Task = {
            "job_id": claim.job_id,
            "token": claim.token,
            "kind": claim.kind,
            "name": claim.name,
            "spec": claim.spec,
            "inputs": {role: str(resolve(self.store, at)) for role, at in claim.inputs.items()},
            "out": str(out),
            "log": f"{out}.log",
            "previous": [str(resolve(self.store, at)) for at in claim.previous],
        }
        # Recorded before the work begins: whoever comes after a crash knows where to look.
        held = jobs.started(
            self.engine,
            job_id=claim.job_id,
            token=claim.token,
            actor=placement.name,
            node="",
            folder=folder,
            log=f"{folder}.log",
            owner=self.owner,
        )
        if not held:
            self.pool.kill(placement)
            return True
        outcome = placement.actor.run.options(name=claim.name).remote(task)
        self.assigned.append(
            Assignment(
                job_id=claim.job_id,
                token=claim.token,
                kind=claim.kind,
                name=claim.name,
                folder=folder,
                placement=placement,
                outcome=outcome,
            )
        )
        log.info("started   %s", claim.name)
        return True

    def _settle_ended(self, wait_s: float) -> None:
        """Wait for the first worker to end, at most so long, and settle all that have."""
        refs = [assignment.outcome for assignment in self.assigned]
        if not refs:
            time.sleep(wait_s / 4)
            return
        ended = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        if not ended:
            ended = set(ray.wait(refs, num_returns=1, timeout=wait_s)[0])
        for assignment in [a for a in self.assigned if a.outcome in ended]:
            # Forgotten only once it is written: a database that is away for a while loses nothing.
            self._settle(assignment)
            self.assigned.remove(assignment)

    def _settle(self, assignment: Assignment) -> None:
        try:
            outcome: Outcome | None = ray.get(assignment.outcome)
            reusable = assignment.kind != "train"
        except ray.exceptions.RayError as error:
            outcome, reusable = _died(_first_line(error)), False
        self._end(assignment, outcome or _died("it has another task in hand"))
        # A training leaves memory and process groups behind; its worker is not used again.
        self.pool.give_back(assignment.placement, reusable=reusable)

    def _end(self, assignment: Assignment, outcome: Outcome) -> None:
        job_id, token, name = assignment.job_id, assignment.token, assignment.name
        if outcome["state"] == "stopped":
            self._release(job_id, token, outcome["reason"] or "stopped")
            log.info("stopped   %s", name)
        elif outcome["state"] == "failed":
            failure, reason = outcome["failure"] or "UNKNOWN", outcome["reason"] or ""
            self._fail(job_id, token, name, failure, reason)
        else:
            took_s = time.monotonic() - assignment.began_s
            self._accept(job_id, token, f"{name} ({took_s:.1f} s)", assignment.folder)

    def _settle_lost(self, attempt: jobs.Held) -> None:
        """Accept the finished folder of a worker that is gone; otherwise its job is tried again."""
        if attempt.folder and is_finished(resolve(self.store, attempt.folder)):
            self._accept(attempt.job_id, attempt.token, attempt.name, attempt.folder)
        else:
            reason = "its worker and its controller are gone"
            self._fail(attempt.job_id, attempt.token, attempt.name, "NODE", reason)

    def _accept(self, job_id: int, token: int, name: str, folder: str) -> None:
        try:
            accepted = accept(
                self.engine,
                self.store,
                job_id=job_id,
                token=token,
                owner=self.owner,
                folder=folder,
            )
        except XsweepError as error:
            self._fail(job_id, token, name, "INFRA", str(error))
            return
        if accepted:
            log.info("done      %s", name)
        else:
            log.warning("refused   %s: token %d is no longer the job's own", name, token)

    def _fail(self, job_id: int, token: int, name: str, failure: str, reason: str) -> None:
        state = jobs.fail(
            self.engine,
            job_id=job_id,
            token=token,
            owner=self.owner,
            failure=failure,
            reason=reason,
        )
        log.warning("%-9s %s: %s: %s", state or "refused", name, failure, reason)

    def _release(self, job_id: int, token: int, reason: str) -> None:
        jobs.release(self.engine, job_id=job_id, token=token, owner=self.owner, reason=reason)

    def _refresh(self) -> None:
        """Ask the workers how they are, renew the leases, stop those whose lease is lost."""
        self._refreshed_s = time.monotonic()
        statuses = self.pool.statuses([assignment.placement for assignment in self.assigned])
        progress: dict[tuple[int, int], dict[str, Any]] = {}
        for assignment in list(self.assigned):
            status = statuses.get(assignment.placement.name)
            if status and status["token"] == assignment.token:
                assignment.answered = True
                pair = (assignment.job_id, assignment.token)
                progress[pair] = {**status["progress"], "node": status["node"]}
            elif not assignment.answered and time.monotonic() - assignment.began_s > PLACE_S:
                # Not an error of the job: somebody else uses what Ray believed to be free.
                self.assigned.remove(assignment)
                self.pool.kill(assignment.placement)
                reason = f"no worker came up within {PLACE_S:.0f} s"
                self._release(assignment.job_id, assignment.token, reason)
        held = [(a.job_id, a.token) for a in self.assigned]
        if self.unplaced:
            held.append((self.unplaced.job_id, self.unplaced.token))
        still = jobs.renew(
            self.engine, owner=self.owner, held=held, lease_s=LEASE_S, progress=progress
        )
        for assignment in [a for a in self.assigned if (a.job_id, a.token) not in still]:
            log.warning("lost      %s: its lease is gone; stopping it", assignment.name)
            self.assigned.remove(assignment)
            self.pool.kill(assignment.placement)
        if self.unplaced and (self.unplaced.job_id, self.unplaced.token) not in still:
            self.unplaced = None
        controllers.beat(self.engine, self.owner)

    def _recover(self) -> None:
        """Requeue jobs whose lease ran out: their controller is gone and nobody adopted them."""
        for attempt in jobs.expired(self.engine):
            if jobs.requeue_expired(
                self.engine, job_id=attempt.job_id, token=attempt.token, owner=attempt.owner
            ):
                log.warning("requeued  %s: the lease of %s ran out", attempt.name, attempt.owner)


def _died(how: str) -> Outcome:
    return {"state": "failed", "failure": "NODE", "reason": f"the worker died: {how}"}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

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

import psutil
import ray
from sqlalchemy import Engine

from db import controllers, jobs
from evaluator.manifest import is_finished
from orchestrator.accept import accept
from orchestrator.pool import Placement, Pool, as_ray_resources
from orchestrator.store import attempt_folder, resolve
from orchestrator.workers import Outcome, Task
from xsweep import DataError

log = logging.getLogger("xsweep")

LEASE_S = 60.0
REFRESH_S = 3.0
"""How often progress and leases are written; a lease survives many that fail."""
PLACE_S = 120.0
"""How long a worker may take to answer for the first time before its job goes back."""

Job = jobs.Claim | jobs.Held
"""An attempt under way: claimed by this controller, or adopted from another."""


@dataclass
class Assignment:
    """A job that a worker of this controller has in hand."""

    job: Job
    folder: str
    placement: Placement
    outcome: ray.ObjectRef
    answered: bool = False
    began_s: float = field(default_factory=time.monotonic)


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
        others = [each for each in controllers.live(self.engine) if _may_live(each)]
        alive = {each.owner for each in others} - {self.owner}
        workers = self.pool.survivors()
        for held in jobs.running(self.engine):
            worker = workers.pop(held.actor or "", None)
            if held.owner in alive or not self._take_over(held):
                continue
            if worker is not None:
                self._go_on(held, worker)
            elif held.folder and is_finished(resolve(self.store, held.folder)):
                if self._accept(held, held.folder):
                    log.info("done      %s (found finished)", held.name)
            else:
                self._fail(held, "NODE", "its worker and its controller are gone")
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
            self._release(assignment.job, reason)
        self.assigned.clear()
        if self.unplaced:
            self._release(self.unplaced, reason)
            self.unplaced = None

    def close(self) -> None:
        """Free the warm workers and leave the list of controllers; what still works goes on."""
        self.pool.free_idle(after_s=0.0)
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
            self._fail(claim, "CONFIG", missing)
            return True
        unique = f"{claim.name} #{claim.job_id}.{claim.token}"
        placement = self.pool.take(claim.kind, unique, resources)
        if placement is None:
            return False
        folder = attempt_folder(claim.kind, claim.identity, claim.token)
        # Recorded before the work begins: whoever comes after a crash knows where to look.
        if not jobs.started(
            self.engine,
            job_id=claim.job_id,
            token=claim.token,
            actor=placement.name,
            node="",
            folder=folder,
            log=f"{folder}.log",
            owner=self.owner,
        ):
            self.pool.kill(placement)
            return True
        outcome = placement.actor.run.options(name=claim.name).remote(self._task(claim, folder))
        self.assigned.append(Assignment(claim, folder, placement, outcome))
        log.info("started   %s", claim.name)
        return True

    def _task(self, claim: jobs.Claim, folder: str) -> Task:
        out = resolve(self.store, folder)
        return {
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
            reusable = assignment.job.kind != "train"
        except ray.exceptions.RayError as error:
            reason = f"the worker died: {_first_line(error)}"
            outcome = {"state": "failed", "failure": "NODE", "reason": reason}
            reusable = False
        if outcome is None:
            # Adopted from a controller that was killed between starting the worker and calling it.
            outcome = {"state": "stopped", "failure": None, "reason": "it had not begun"}
        self._end(assignment, outcome)
        # A training leaves memory and process groups behind; its worker is not used again.
        self.pool.give_back(assignment.placement, reusable=reusable)

    def _end(self, assignment: Assignment, outcome: Outcome) -> None:
        job = assignment.job
        if outcome["state"] == "stopped":
            self._release(job, outcome["reason"] or "stopped")
            log.info("stopped   %s", job.name)
        elif outcome["state"] == "failed":
            self._fail(job, outcome["failure"] or "UNKNOWN", outcome["reason"] or "")
        elif self._accept(job, assignment.folder):
            log.info("done      %s (%.1f s)", job.name, time.monotonic() - assignment.began_s)

    def _accept(self, job: Job, folder: str) -> bool:
        try:
            accepted = accept(
                self.engine,
                self.store,
                job_id=job.job_id,
                token=job.token,
                owner=self.owner,
                folder=folder,
            )
        except DataError as error:
            self._fail(job, "INFRA", str(error))
            return False
        if not accepted:
            log.warning("refused   %s: its lease is another's by now", job.name)
        return accepted

    def _fail(self, job: Job, failure: str, reason: str) -> None:
        state = jobs.fail(
            self.engine,
            job_id=job.job_id,
            token=job.token,
            owner=self.owner,
            failure=failure,
            reason=reason,
        )
        log.warning("%-9s %s: %s: %s", state or "refused", job.name, failure, reason)

    def _release(self, job: Job, reason: str) -> None:
        jobs.release(
            self.engine, job_id=job.job_id, token=job.token, owner=self.owner, reason=reason
        )

    def _refresh(self) -> None:
        """Ask the workers how they are, renew the leases, stop those whose lease is lost."""
        self._refreshed_s = time.monotonic()
        statuses = self.pool.statuses([assignment.placement for assignment in self.assigned])
        progress: dict[tuple[int, int], dict[str, Any]] = {}
        for assignment in list(self.assigned):
            status = statuses.get(assignment.placement.name)
            if status and status["token"] == assignment.job.token:
                assignment.answered = True
                progress[_pair(assignment.job)] = {**status["progress"], "node": status["node"]}
            elif not assignment.answered and time.monotonic() - assignment.began_s > PLACE_S:
                # Not an error of the job: somebody else uses what Ray believed to be free.
                self._drop(assignment)
                self._release(assignment.job, f"no worker came up within {PLACE_S:.0f} s")
        held = [assignment.job for assignment in self.assigned]
        if self.unplaced:
            held.append(self.unplaced)
        still = jobs.renew(
            self.engine,
            owner=self.owner,
            held=[_pair(job) for job in held],
            lease_s=LEASE_S,
            progress=progress,
        )
        for assignment in [each for each in self.assigned if _pair(each.job) not in still]:
            log.warning("lost      %s: its lease is gone; stopping it", assignment.job.name)
            self._drop(assignment)
        if self.unplaced and _pair(self.unplaced) not in still:
            self.unplaced = None
        controllers.beat(self.engine, self.owner)

    def _drop(self, assignment: Assignment) -> None:
        self.assigned.remove(assignment)
        self.pool.kill(assignment.placement)

    def _recover(self) -> None:
        """See to the jobs whose lease ran out: adopt what lives, requeue the rest."""
        overdue = jobs.expired(self.engine)
        workers = self.pool.survivors() if overdue else {}
        for held in overdue:
            worker = workers.get(held.actor or "")
            if worker is not None:
                if self._take_over(held):
                    self._go_on(held, worker)
            elif jobs.requeue_expired(
                self.engine, job_id=held.job_id, token=held.token, owner=held.owner
            ):
                log.warning("requeued  %s: its lease ran out and its worker is gone", held.name)

    def _take_over(self, held: jobs.Held) -> bool:
        return jobs.adopt(
            self.engine,
            job_id=held.job_id,
            token=held.token,
            old_owner=held.owner,
            new_owner=self.owner,
            lease_s=LEASE_S,
        )

    def _go_on(self, held: jobs.Held, worker: Any) -> None:
        placement = self.pool.adopt(held.actor or "", worker, as_ray_resources(held.resources))
        outcome = worker.outcome.options(name=held.name).remote(held.token)
        self.assigned.append(Assignment(held, held.folder or "", placement, outcome, True))
        log.info("adopted   %s", held.name)


def _may_live(controller: controllers.LiveController) -> bool:
    """False only where its process is surely gone: it was on this machine and is no more."""
    here = controller.host == socket.gethostname()
    return not here or (controller.pid != os.getpid() and psutil.pid_exists(controller.pid))


def _pair(job: Job) -> tuple[int, int]:
    return job.job_id, job.token


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

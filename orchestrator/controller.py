"""The controller: claims ready jobs, places them on Ray, keeps their leases, accepts their results.

It is the only process that talks to the database. Killing it kills no job: workers are detached
actors, and the next controller adopts those that live and the folders that are finished.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from sqlalchemy import Engine

from db import controllers, jobs
from orchestrator.accept import Finished, accept_all
from orchestrator.pool import Placement, Pool, Resources, as_ray_resources, runs_alone
from orchestrator.remote import is_published, url_of
from orchestrator.store import attempt_folder, resolve
from orchestrator.workers import Outcome, Task
from xsweep import DataError, SetupError

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

    def __init__(
        self,
        engine: Engine,
        store: Path,
        *,
        dashboard: str | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.owner = uuid.uuid4().hex
        self.pool = pool or Pool()
        self.assigned: list[Assignment] = []
        self.unplaced: list[jobs.Claim] = []
        """Claimed jobs whose resources are not free yet; they wait at the head of the queue."""
        self._usual: Resources | None = None
        """What the latest job needed: the next ones are likely to need the same."""
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
            elif held.folder and is_published(self.store, held.folder):
                if self._accept([(held, held.folder)]):
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
        for claim in self.unplaced:
            self._release(claim, reason)
        self.unplaced.clear()

    def close(self) -> None:
        """Free the warm workers and leave the list of controllers; what still works goes on."""
        self.pool.free_idle(after_s=0.0)
        controllers.unregister(self.engine, self.owner)

    def _place_ready(self) -> None:
        """Claim as many jobs as are likely to find room, and start those that do."""
        while self.unplaced or self._claim():
            placed: list[tuple[jobs.Claim, Placement]] = []
            while self.unplaced:
                claim = self.unplaced[0]
                resources = as_ray_resources(claim.resources)
                unique = f"{claim.name} #{claim.job_id}.{claim.token}"
                if missing := self.pool.never_fits(resources):
                    self._fail(claim, "CONFIG", missing)
                elif placement := self.pool.take(
                    unique, resources, alone=runs_alone(claim.kind, claim.spec, resources)
                ):
                    placed.append((claim, placement))
                    self._usual = resources
                else:
                    break
                self.unplaced.pop(0)
            self._start(placed)
            if self.unplaced:
                break
        self.pool.free_idle()

    def _claim(self) -> bool:
        room = self.pool.room(self._usual) or self.pool.room(None)
        self.unplaced = jobs.claim(self.engine, owner=self.owner, limit=room, lease_s=LEASE_S)
        return bool(self.unplaced)

    def _start(self, placed: list[tuple[jobs.Claim, Placement]]) -> None:
        """Let workers begin, and drop those whose job is another's by now."""
        places = {
            _pair(claim): jobs.Place(
                *(claim.job_id, claim.token, placement.name, ""), folder, f"{folder}.log"
            )
            for claim, placement in placed
            for folder in [attempt_folder(claim.kind, claim.identity, claim.token)]
        }
        try:
            # Recorded before the work begins: whoever comes after a crash knows where to look.
            held = jobs.started_all(self.engine, list(places.values()), owner=self.owner)
        except SetupError:
            for _, placement in placed:
                self.pool.kill(placement)
            self.unplaced[:0] = [claim for claim, _ in placed]
            raise
        for claim, placement in placed:
            if _pair(claim) not in held:
                self.pool.kill(placement)
                continue
            folder = places[_pair(claim)].folder
            outcome = placement.actor.run.options(name=claim.name).remote(self._task(claim, folder))
            self.assigned.append(Assignment(claim, folder, placement, outcome))
            log.info("started   %s", claim.name)

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
            "root": str(self.store),
            "remote": url_of(self.store),
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
        self._settle([each for each in self.assigned if each.outcome in ended])

    def _settle(self, ended: list[Assignment]) -> None:
        """Write how attempts ended: all results at once, then the rest one by one."""
        # Forgotten only once it is written: a database that is away for a while loses nothing.
        outcomes = [(assignment, *self._outcome(assignment)) for assignment in ended]
        finished = [each for each, outcome, _ in outcomes if outcome["state"] == "finished"]
        accepted = self._accept([(each.job, each.folder) for each in finished])
        for assignment, outcome, lives in outcomes:
            job = assignment.job
            if outcome["state"] == "finished":
                if _pair(job) in accepted:
                    taken_s = time.monotonic() - assignment.began_s
                    log.info("done      %s (%.1f s)", job.name, taken_s)
            elif outcome["state"] == "stopped":
                self._release(job, outcome["reason"] or "stopped")
                log.info("stopped   %s", job.name)
            else:
                self._fail(job, outcome["failure"] or "UNKNOWN", outcome["reason"] or "")
            self.assigned.remove(assignment)
            placement = assignment.placement
            self.pool.give_back(placement, reusable=lives and placement.shared)

    def _outcome(self, assignment: Assignment) -> tuple[Outcome, bool]:
        """How the attempt ended, and whether its worker lives."""
        try:
            outcome: Outcome | None = ray.get(assignment.outcome)
        except ray.exceptions.RayError as error:
            reason = f"the worker died: {_first_line(error)}"
            return {"state": "failed", "failure": "NODE", "reason": reason}, False
        # None: adopted from a controller that was killed between starting the worker and calling it
        return outcome or {"state": "stopped", "failure": None, "reason": "it had not begun"}, True

    def _accept(self, finished: Sequence[tuple[Job, str]]) -> set[tuple[int, int]]:
        """Accept finished folders; the (job id, token) pairs of those that count."""
        folders = [Finished(*_pair(job), folder) for job, folder in finished]
        answers = accept_all(self.engine, self.store, folders, owner=self.owner)
        for (job, _), answer in zip(finished, answers, strict=True):
            if isinstance(answer, DataError):
                self._fail(job, "INFRA", str(answer))
            elif not answer:
                log.warning("refused   %s: its lease is another's by now", job.name)
        return {_pair(job) for (job, _), ok in zip(finished, answers, strict=True) if ok is True}

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
        held = [*(assignment.job for assignment in self.assigned), *self.unplaced]
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
        self.unplaced = [claim for claim in self.unplaced if _pair(claim) in still]
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

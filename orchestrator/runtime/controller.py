"""The controller: claims ready jobs, places them on Ray, keeps their leases, accepts their results.

It is the only process that talks to the database. Killing it kills no job: workers are detached
actors, and the next controller adopts those that live and the folders that are finished.

What other controllers left: attempts whose workers live are adopted, the rest are settled.

What one controller writes of the jobs in its hand, each time under its own name and token.

Accepting finished folders: check them against their manifests, write them under the tokens.
"""

import json
import logging
import math
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from sqlalchemy import Engine

from xsweep.db import controllers, jobs
from xsweep.db.status import LiveController, live_controllers, pending_demand
from xsweep.errors import DataError, SetupError
from xsweep.evaluator.data.files import checksum
from xsweep.orchestrator.runtime.asha import Pruner
from xsweep.orchestrator.runtime.attempt import Assignment, actors_of, begin, names_of, task_of
from xsweep.orchestrator.runtime.autoscale import Demand, within
from xsweep.orchestrator.runtime.placement import Request, Strikes, request_of
from xsweep.orchestrator.runtime.pool import Placement, Pool, runs_alone
from xsweep.orchestrator.settings import KINDS
from xsweep.orchestrator.storage.store import Store, attempt_folder


class Finished(NamedTuple):
    """An attempt that reports to be done, and its folder."""

    lease: jobs.Lease
    folder: str


def accept_all(
    engine: Engine, store: Store, finished: Sequence[Finished]
) -> list[bool | DataError]:
    """Make each folder the result of its job, all of them in one transaction.

    In their order: True; False where the lease no longer holds; a DataError where the folder
    differs from its manifest or lacks what a result needs.
    """
    try:
        results = [_result(store, each) for each in finished]
        held = jobs.finish(engine, results)
    except DataError as error:
        if len(finished) == 1:
            return [error]
        # a bad one must not hold up the good ones
        return [accept_all(engine, store, [each])[0] for each in finished]
    return [each.lease in held for each in finished]


def _result(store: Store, finished: Finished) -> jobs.NewResult:
    path = store.fetch_results(finished.folder)
    return jobs.NewResult(
        **finished._asdict(),
        manifest_sha256=checksum(path / "manifest.json"),
        summary=_read(path / "summary.json") or {},
        provenance=_read(path / "provenance.json") or {},
        scores=_read(path / "per_query.json"),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): run its job again") from error


log = logging.getLogger("xsweep")


@dataclass(frozen=True)
class Ledger:
    """The jobs' rows as the controller `owner` may change them; a lost lease changes nothing."""

    engine: Engine
    store: Store
    owner: str
    pruner: Pruner
    lease_s: float

    def accept(self, finished: Sequence[tuple[jobs.Claim, str]]) -> set[jobs.Lease]:
        """Accept finished folders; the leases of those that count."""
        for job, folder in finished:
            # What a trial measured since the last look is knowledge about its peers, too.
            self.pruner.ends(job, folder)
        folders = [Finished(job.lease, folder) for job, folder in finished]
        answers = accept_all(self.engine, self.store, folders)
        for (job, _), answer in zip(finished, answers, strict=True):
            if isinstance(answer, DataError):
                self.fail(job, "INFRA", str(answer))
            elif not answer:
                log.warning("refused   %s: its lease is another's by now", job.name)
        return {job.lease for (job, _), ok in zip(finished, answers, strict=True) if ok is True}

    def fail(self, job: jobs.Claim, failure: str, reason: str) -> None:
        """Charge an attempt with a failure; the table decides whether there is another."""
        state = jobs.fail(self.engine, job.lease, failure=failure, reason=reason)
        log.warning("%-9s %s: %s: %s", state or "refused", job.name, failure, reason)

    def release(self, job: jobs.Claim, reason: str) -> None:
        """Give a job back uncharged."""
        jobs.release(self.engine, job.lease, reason=reason)

    def take_over(self, held: jobs.Claim) -> jobs.Claim | None:
        """Become the owner of another's attempt; None where it is somebody else's by now."""
        return jobs.adopt(self.engine, held, owner=self.owner, lease_s=self.lease_s)


def adopt(ledger: Ledger, pool: Pool) -> list[Assignment]:
    """Take over from dead controllers: live workers, finished folders, lost jobs.

    Workers and placement groups that no job holds are removed, unless another controller lives.
    """
    others = [each for each in live_controllers(ledger.engine) if _may_live(each)]
    alive = {each.owner for each in others} - {ledger.owner}
    workers = pool.survivors()
    adopted: list[Assignment] = []
    kept: set[str] = set()
    for orphan in jobs.running(ledger.engine):
        held = None if orphan.owner in alive else ledger.take_over(orphan)
        if held is None:
            continue
        if actors := actors_of(held, workers):
            kept |= names_of(held)
            adopted.append(_go_on(pool, held, actors))
        elif held.folder and ledger.store.is_published(held.folder):
            if ledger.accept([(held, held.folder)]):
                log.info("done      %s (found finished)", held.name)
        elif held.folder is None:
            ledger.release(held, "its controller was gone before it began")
        else:
            ledger.fail(held, "NODE", "its worker and its controller are gone")
    if not alive:
        for name in workers.keys() - kept:
            ray.kill(workers[name])
        for name in pool.remove_leaked_groups(kept):
            log.warning("removed   the placement group %s, which no job holds", name)
    return adopted


def recover(ledger: Ledger, pool: Pool) -> list[Assignment]:
    """See to the jobs whose lease ran out: adopt what lives, requeue the rest."""
    overdue = jobs.expired(ledger.engine)
    workers = pool.survivors() if overdue else {}
    adopted: list[Assignment] = []
    for orphan in overdue:
        if actors := actors_of(orphan, workers):
            if held := ledger.take_over(orphan):
                adopted.append(_go_on(pool, held, actors))
        elif jobs.requeue_expired(ledger.engine, orphan.lease):
            log.warning("requeued  %s: its lease ran out and its worker is gone", orphan.name)
    return adopted


def _go_on(pool: Pool, held: jobs.Claim, actors: list[Any]) -> Assignment:
    request = request_of(held.resources)
    placement = pool.adopt(held.actor or "", request, actors, held.node)
    awaited = {actor.outcome.remote(held.token): rank for rank, actor in enumerate(actors)}
    log.info("adopted   %s", held.name)
    return Assignment(held, held.folder or "", placement, awaited, answered=True)


def _may_live(controller: LiveController) -> bool:
    """False only where its process is surely gone: it was on this machine and is no more."""
    here = controller.host == socket.gethostname()
    return not here or (controller.pid != os.getpid() and psutil.pid_exists(controller.pid))


REFRESH_S = 3.0
"""How often progress and leases are written; a lease survives many that fail."""


PLACE_S = 120.0
"""How long a worker may take to answer for the first time before its job goes back."""


class Controller:
    """One controller's view of its workers; the truth is in the database."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        dashboard: str | None = None,
        pool: Pool | None = None,
        lease_s: float = 60.0,
        demand: Demand | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.lease_s = lease_s
        self.demand = demand or Demand(patience_s=0.0)
        self.limits = dict(limits or {})
        """Jobs of a kind that may run at once."""
        self.owner = uuid.uuid4().hex
        self.pool = pool or Pool()
        self.ledger = Ledger(engine, store, self.owner, Pruner(engine, store), lease_s)
        self.assigned: list[Assignment] = []
        self.unplaced: list[jobs.Claim] = []
        """Claimed jobs whose resources are not free yet; they wait at the head of the queue."""
        self.strikes = Strikes()
        self._usual: Request | None = None
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
            self.assigned += recover(self.ledger, self.pool)

    def adopt(self) -> None:
        """Take over what dead controllers left: live workers, finished folders, lost jobs."""
        self.assigned += adopt(self.ledger, self.pool)

    def drain(self, grace_s: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Ask every worker to save and leave; jobs go back to ready and are not charged.

        After `grace_s`, or as soon as `hurry` says so, those that are left are killed.
        """
        for assignment in self.assigned:
            assignment.stop()
        deadline = time.monotonic() + grace_s
        while self.assigned and time.monotonic() < deadline and not hurry():
            self._settle_ended(0.5)
            self._refresh()
        self.abandon("the controller was told to leave")

    def abandon(self, reason: str) -> None:
        """Kill every worker at once and give its job back uncharged."""
        for assignment in self.assigned:
            self.pool.kill(assignment.placement)
            self.ledger.release(assignment.job, reason)
        self.assigned.clear()
        for claim in self.unplaced:
            self.ledger.release(claim, reason)
        self.unplaced.clear()

    def close(self) -> None:
        """Free the warm workers and leave the list of controllers; what still works goes on."""
        self.pool.free_idle(after_s=0.0)
        self.demand.ask((), ())
        controllers.unregister(self.engine, self.owner)

    def _place_ready(self) -> None:
        """Claim as many jobs as are likely to find room, and start those that do."""
        while self.unplaced or self._claim():
            placed: list[tuple[jobs.Claim, Placement]] = []
            while self.unplaced:
                claim = self.unplaced[0]
                request = request_of(claim.resources)
                if missing := self.pool.infeasible_reason(request):
                    if self.demand.unmet(claim.job_id, request, missing):
                        self.ledger.fail(claim, "CONFIG", missing)
                    else:
                        self.ledger.release(claim, missing)
                elif placement := self._place(claim, request):
                    placed.append((claim, placement))
                    self.demand.met(claim.job_id)
                    self._usual = request
                else:
                    break
                self.unplaced.pop(0)
            self._start(placed)
            if self.unplaced:
                break
        self.pool.free_idle()

    def _claim(self) -> bool:
        waiting = self.demand.waiting(self.pool.nodes())
        room = self.pool.room(self._usual) or self.pool.room(None)
        if not (room or waiting or self.pool.has_workplaces()):
            room = 1  # to say what is missing, and in the end to refuse it
        kinds = None
        if self.limits:
            running = Counter(each.job.kind for each in self.assigned)
            kinds = [kind for kind in KINDS if running[kind] < self.limits.get(kind, math.inf)]
            room = min(room, 1)
        self.unplaced = jobs.claim(
            self.engine,
            owner=self.owner,
            limit=room,
            lease_s=self.lease_s,
            kinds=kinds,
            exclude=waiting,
        )
        return bool(self.unplaced)

    def _place(self, claim: jobs.Claim, request: Request) -> Placement | None:
        return self.pool.take(
            f"{claim.name} #{claim.job_id}.{claim.token}",
            request,
            alone=runs_alone(claim.kind, claim.spec, request),
            model=claim.inputs.get("run"),
            avoid=self.strikes.avoid(self.pool.nodes()),
        )

    def _start(self, placed: list[tuple[jobs.Claim, Placement]]) -> None:
        """Let workers begin, and drop those whose job is another's by now."""
        places = {
            claim.lease: jobs.Place(placement.name, placement.node, folder, f"{folder}.log")
            for claim, placement in placed
            for folder in [attempt_folder(claim.kind, claim.identity, claim.token)]
        }
        try:
            # Recorded before the work begins: whoever comes after a crash knows where to look.
            held = jobs.mark_started(self.engine, places)
        except SetupError:
            for _, placement in placed:
                self.pool.kill(placement)
            self.unplaced[:0] = [claim for claim, _ in placed]
            raise
        for claim, placement in placed:
            if claim.lease not in held:
                self.pool.kill(placement)
                continue
            folder = places[claim.lease].folder
            awaited = begin(placement, task_of(claim, self.store, folder))
            self.assigned.append(Assignment(claim, folder, placement, awaited))
            log.info("started   %s", claim.name)

    def _settle_ended(self, wait_s: float) -> None:
        """Wait for the first worker to end, at most so long, and settle all that have."""
        refs = {ref: assignment for assignment in self.assigned for ref in assignment.awaited}
        if not refs:
            time.sleep(wait_s / 4)
        else:
            ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            if not ended:
                ended, _ = ray.wait(list(refs), num_returns=1, timeout=wait_s)
            for ref in ended:
                refs[ref].hear(ref)
        self._settle([each for each in self.assigned if each.ended])

    def _settle(self, ended: list[Assignment]) -> None:
        """Write how attempts ended: all results at once, then the rest one by one."""
        # Forgotten only once it is written: a database that is away for a while loses nothing.
        outcomes = [(assignment, assignment.verdict()) for assignment in ended]
        finished = [each for each, outcome in outcomes if outcome["state"] == "finished"]
        accepted = self.ledger.accept([(each.job, each.folder) for each in finished])
        for assignment, outcome in outcomes:
            job = assignment.job
            if outcome["state"] == "finished":
                if job.lease in accepted:
                    taken_s = time.monotonic() - assignment.began_s
                    log.info("done      %s (%.1f s)", job.name, taken_s)
            elif outcome["state"] == "stopped":
                self.ledger.release(job, outcome["reason"] or "stopped")
                log.info("stopped   %s", job.name)
            else:
                self.ledger.fail(job, outcome["failure"] or "UNKNOWN", outcome["reason"] or "")
            self.assigned.remove(assignment)
            self._judge(assignment, outcome["failure"])
            placement = assignment.placement
            reusable = outcome["failure"] not in ("NODE", "PREEMPTED") and placement.shared
            self.pool.give_back(placement, reusable=reusable)

    def _judge(self, assignment: Assignment, failure: str | None) -> None:
        """Leave a node alone where job after job fails."""
        for host in set(assignment.placement.hosts):
            if self.strikes.count(host, assignment.job.job_id, failure):
                log.warning("excluded  node %s: jobs fail there one after the other", host)

    def _refresh(self) -> None:
        """Ask the workers how they are, renew the leases, stop those whose lease is lost."""
        now_s = time.monotonic()
        # Of a time in which this process itself was stopped, nobody else was silent.
        since_s = min(now_s - self._refreshed_s, 2 * REFRESH_S)
        self._refreshed_s = now_s
        statuses = self.pool.statuses([assignment.placement for assignment in self.assigned])
        progress: dict[jobs.Lease, dict[str, Any]] = {}
        for assignment in list(self.assigned):
            if self.pool.leaves(assignment.placement):
                assignment.leave()
            heard = statuses.get(assignment.placement.name)
            if heard and all(status["token"] == assignment.job.token for status in heard):
                assignment.answered, assignment.silent_s = True, 0.0
                where = {"node": assignment.placement.node}
                progress[assignment.job.lease] = {**heard[0]["progress"], **where}
                if self.ledger.pruner.ends(assignment.job, assignment.folder):
                    for actor in assignment.placement.actors:
                        actor.halt.remote(assignment.job.token)
                continue
            assignment.silent_s += since_s
            if assignment.answered and assignment.silent_s > self.lease_s:
                # Stopped or stuck, or out of sight: somebody else does it meanwhile.
                self._drop(assignment)
                reason = f"its worker has not answered for {assignment.silent_s:.0f} s"
                self.ledger.fail(assignment.job, "NODE", reason)
                self._judge(assignment, "NODE")
                for host in set(assignment.placement.hosts):
                    self.strikes.rest(host)
            elif not assignment.answered and time.monotonic() - assignment.began_s > PLACE_S:
                # Not an error of the job: somebody else uses what Ray believed to be free.
                self._drop(assignment)
                self.ledger.release(assignment.job, f"no worker came up within {PLACE_S:.0f} s")
        held = [*(assignment.job for assignment in self.assigned), *self.unplaced]
        leases = [job.lease for job in held]
        still = jobs.renew(self.engine, leases, lease_s=self.lease_s, progress=progress)
        for assignment in [each for each in self.assigned if each.job.lease not in still]:
            log.warning("lost      %s: its lease is gone; stopping it", assignment.job.name)
            self._drop(assignment)
        self.unplaced = [claim for claim in self.unplaced if claim.lease in still]
        if self.demand.scales:
            running = Counter(each.job.kind for each in self.assigned)
            waiting = [request_of(claim.resources) for claim in self.unplaced]
            waiting += within(self.limits, running, pending_demand(self.engine))
            self.demand.ask((each.placement.request for each in self.assigned), waiting)
        controllers.heartbeat(self.engine, self.owner)

    def _drop(self, assignment: Assignment) -> None:
        self.assigned.remove(assignment)
        self.pool.kill(assignment.placement)

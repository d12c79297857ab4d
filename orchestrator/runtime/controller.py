"""The controller: claims ready jobs, places them on Ray, renews their leases, accepts results.

It is the only process that uses the database. Killing it kills no job: workers are detached actors,
and the next controller adopts those that are alive and accepts folders that are finished.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from sqlalchemy import Engine

from xsweep.db import controllers, jobs
from xsweep.db.status import LiveController, live_controllers, open_resources, pending_demand
from xsweep.errors import DataError, SetupError, first_line
from xsweep.evaluator.data.files import checksum
from xsweep.orchestrator.runtime.asha import Pruner
from xsweep.orchestrator.runtime.attempt import (
    RunningAttempt,
    actors_of,
    names_of,
    start_task,
    task_of,
)
from xsweep.orchestrator.runtime.autoscale import Demand, within
from xsweep.orchestrator.runtime.placement import (
    NodeExclusions,
    Placement,
    ResourceRequest,
    request_of,
)
from xsweep.orchestrator.runtime.pool import Pool, runs_alone
from xsweep.orchestrator.settings import KINDS
from xsweep.orchestrator.storage.store import Store, attempt_folder, require_writable

log = logging.getLogger("xsweep")

REFRESH_S = 3.0
"""Interval of status questions and lease renewals; a lease survives many that fail."""

COUNT_S = 60.0
"""Interval of counting the places that the cluster has for each kind of job."""

STORE_ROOM_BYTES = 2**20
"""Least room in a store for jobs to start."""

FIRST_ANSWER_S = 120.0
"""Time for a new worker to answer its first status question; then its job is released."""


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
        """Most jobs of a kind that run at once."""
        self.owner = uuid.uuid4().hex
        self.pool = pool or Pool()
        self.pruner = Pruner(engine, store)
        self.attempts: list[RunningAttempt] = []
        self.unplaced: list[jobs.Claim] = []
        """Claimed jobs whose resources are not free yet; they wait at the head of the queue."""
        self.exclusions = NodeExclusions()
        self._latest: ResourceRequest | None = None
        """Request of the latest job: the next ones probably need the same."""
        self._refreshed_s = 0.0
        self._places: dict[str, int] = {}
        """Jobs of each kind that run at once, for the estimates of the time left."""
        self._counted_s = -math.inf
        self._store_is_suspect, self._store_fault = False, ""
        host, pid = socket.gethostname(), os.getpid()
        controllers.register(engine, owner=self.owner, host=host, pid=pid, dashboard_url=dashboard)

    @property
    def busy(self) -> bool:
        """True while it holds a job."""
        return bool(self.attempts or self.unplaced)

    def step(self, wait_s: float = 1.0) -> None:
        """Start jobs that fit, wait for one to end, settle it, renew leases."""
        if self._store_works():
            self._place_ready()
        self._settle_ended(wait_s)
        if time.monotonic() - self._refreshed_s > REFRESH_S:
            self._refresh()
            self._recover_expired()

    def drain(self, grace_s: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Ask every worker to save a checkpoint and stop; jobs become ready again, uncharged.

        After `grace_s`, or as soon as `hurry` returns True, the remaining workers are killed.
        """
        for attempt in self.attempts:
            attempt.stop()
        deadline = time.monotonic() + grace_s
        while self.attempts and time.monotonic() < deadline and not hurry():
            self._settle_ended(0.5)
            self._refresh()
        reason = "the controller was stopped"
        for attempt in self.attempts:
            self.pool.kill(attempt.placement)
            self._release(attempt.job, reason)
        for claim in self.unplaced:
            self._release(claim, reason)
        self.attempts.clear()
        self.unplaced.clear()

    def close(self) -> None:
        """Free idle workers and unregister; running jobs continue."""
        self.pool.free_idle(after_s=0.0)
        self.demand.request((), ())
        controllers.unregister(self.engine, self.owner)

    def adopt(self) -> None:
        """Take over from dead controllers: live workers, finished folders, lost jobs.

        Workers and placement groups that no job holds are removed, unless another controller runs.
        """
        others = [each for each in live_controllers(self.engine) if _may_be_alive(each)]
        alive = {each.owner for each in others} - {self.owner}
        workers = self.pool.survivors()
        kept: set[str] = set()
        for orphan in jobs.running(self.engine):
            job = None if orphan.owner in alive else self._take_over(orphan)
            if job is None:
                continue
            if actors := actors_of(job, workers):
                kept |= set(names_of(job))
                self._continue(job, actors)
            elif self._accept_published(job):
                continue
            elif job.folder is None:
                self._release(job, "its controller died before it began")
            else:
                self._fail(job, "NODE", "its worker and its controller are gone")
        if not alive:
            for name in workers.keys() - kept:
                ray.kill(workers[name])
            for name in self.pool.remove_leaked_groups(kept):
                log.warning("removed   the placement group %s, which no job holds", name)

    def _recover_expired(self) -> None:
        """Adopt or requeue the jobs whose lease has expired."""
        expired = jobs.expired(self.engine)
        workers = self.pool.survivors() if expired else {}
        for orphan in expired:
            if actors := actors_of(orphan, workers):
                if job := self._take_over(orphan):
                    self._continue(job, actors)
            elif orphan.folder and self.store.is_published(orphan.folder):
                if job := self._take_over(orphan):
                    self._accept_published(job)
            elif jobs.requeue_expired(self.engine, orphan.lease):
                log.warning("requeued  %s: its lease expired and its worker is gone", orphan.name)

    def _accept_published(self, job: jobs.Claim) -> bool:
        """Accept the folder of an attempt that had finished when nobody watched; False: it had not.

        A folder that is damaged ends the attempt, too.
        """
        if not job.folder or not self.store.is_published(job.folder):
            return False
        if self._accept([(job, job.folder)]):
            log.info("done      %s (found finished)", job.name)
        return True

    def _take_over(self, orphan: jobs.Claim) -> jobs.Claim | None:
        return jobs.adopt(self.engine, orphan, owner=self.owner, lease_s=self.lease_s)

    def _continue(self, job: jobs.Claim, actors: list[Any]) -> None:
        placement = self.pool.adopt(job.actor or "", request_of(job.resources), actors, job.node)
        awaited = {
            actor.outcome.options(name=job.name).remote(job.job_id, job.token): rank
            for rank, actor in enumerate(actors)
        }
        attempt = RunningAttempt(job, job.folder or "", placement, awaited, answered=True)
        self.attempts.append(attempt)
        log.info("adopted   %s", job.name)

    def _place_ready(self) -> None:
        """Claim as many jobs as will probably fit, and start those that do."""
        while self.unplaced or self._claim():
            placed: list[tuple[jobs.Claim, Placement]] = []
            while self.unplaced:
                claim = self.unplaced[0]
                try:
                    request = request_of(claim.resources)
                    reason = self.pool.infeasible_reason(request)
                    placement = None if reason else self._place(claim, request)
                except ValueError as error:  # Ray's, for an amount that it cannot reserve
                    self._fail(claim, "CONFIG", f"{claim.resources}: {first_line(error)}")
                else:
                    if placement:
                        placed.append((claim, placement))
                        self.demand.satisfied(claim.job_id)
                        self._latest = request
                    elif not reason:
                        break
                    elif self.demand.wait(claim.job_id, reason):
                        self._release(claim, reason)
                    else:
                        self._fail(claim, "CONFIG", reason)
                self.unplaced.pop(0)
            self._start(placed)
            if self.unplaced:
                break
        self.pool.free_idle()

    def _store_works(self) -> bool:
        """Return whether the store can be written, after a failure that it may have caused.

        While it cannot, no job starts: all of them would fail in turn.
        """
        if self._store_is_suspect:
            try:
                require_writable(self.store, STORE_ROOM_BYTES)
            except SetupError as error:
                if str(error) != self._store_fault:
                    log.warning("waiting   %s", error)
                self._store_fault = str(error)
                return False
        self._store_is_suspect, self._store_fault = False, ""
        return True

    def _claim(self) -> bool:
        waiting = self.demand.waiting(self.pool.nodes())
        room = self.pool.room(self._latest)
        if not (room or waiting or self.pool.has_workplaces()):
            room = 1  # to report what is missing, and in the end to refuse the job
        kinds = None
        if self.limits:
            running = self._running_by_kind()
            kinds = [kind for kind in KINDS if running[kind] < self.limits.get(kind, math.inf)]
            room = min(room, 1)
        self.unplaced = jobs.claim(
            self.engine,
            owner=self.owner,
            limit=room,
            lease_s=self.lease_s,
            kinds=kinds,
            exclude=waiting,
            running=len(self.attempts),
        )
        return bool(self.unplaced)

    def _place(self, claim: jobs.Claim, request: ResourceRequest) -> Placement | None:
        return self.pool.take(
            f"{claim.name} #{claim.job_id}.{claim.token}",
            request,
            alone=runs_alone(claim.kind, request),
            model=claim.inputs.get("run"),
            excluded=self.exclusions.excluded(self.pool.nodes()),
        )

    def _start(self, placed: list[tuple[jobs.Claim, Placement]]) -> None:
        """Start placed jobs, and drop those whose lease is lost."""
        places = {
            claim.lease: jobs.Place(placement.name, placement.node, folder, f"{folder}.log")
            for claim, placement in placed
            for folder in [attempt_folder(claim.kind, claim.identity, claim.token)]
        }
        try:
            # Recorded before the work begins: after a crash the next controller can find it.
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
            awaited = start_task(placement, task_of(claim, self.store, folder))
            self.attempts.append(RunningAttempt(claim, folder, placement, awaited))
            log.info("started   %s", claim.name)

    def _settle_ended(self, wait_s: float) -> None:
        """Wait at most `wait_s` for the first worker to end, and settle all that have ended."""
        refs = {ref: attempt for attempt in self.attempts for ref in attempt.awaited}
        if not refs:
            time.sleep(wait_s / 4)
        else:
            ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            if not ended:
                ended, _ = ray.wait(list(refs), num_returns=1, timeout=wait_s)
            for ref in ended:
                refs[ref].collect(ref)
        self._settle([attempt for attempt in self.attempts if attempt.ended])

    def _settle(self, ended: list[RunningAttempt]) -> None:
        """Write how attempts ended: all results at once, then the rest one by one."""
        # Forgotten only once written: while the database is away, nothing is lost.
        outcomes = [(attempt, attempt.outcome()) for attempt in ended]
        finished = [each for each, outcome in outcomes if outcome["state"] == "finished"]
        accepted = self._accept([(each.job, each.folder) for each in finished])
        theirs = controllers.adopted_by_others(self.engine, [each.job.lease for each in ended])
        for attempt, outcome in outcomes:
            job, failure = attempt.job, outcome["failure"]
            if outcome["state"] == "finished":
                if job.lease in accepted:
                    log.info("done      %s (%.1f s)", job.name, time.monotonic() - attempt.began_s)
            elif outcome["state"] == "stopped":
                self._release(job, outcome["reason"] or "stopped")
                log.info("stopped   %s", job.name)
            else:
                self._fail(job, failure or "UNKNOWN", outcome["reason"] or "")
            self.attempts.remove(attempt)
            if job.lease in theirs:
                self.pool.forget(attempt.placement)
                continue
            self._record_on_nodes(attempt, failure)
            has_died = failure in ("NODE", "PREEMPTED", "OOM_HOST", "NODE_FULL")
            reusable = attempt.placement.shared and not has_died
            self.pool.give_back(attempt.placement, reusable=reusable)

    def _refresh(self) -> None:
        """Ask the workers for their status, renew leases, stop jobs whose lease is lost."""
        now_s = time.monotonic()
        # Time in which this process itself was suspended must not count as silence.
        since_s = min(now_s - self._refreshed_s, 2 * REFRESH_S)
        self._refreshed_s = now_s
        if now_s - self._counted_s > COUNT_S:
            self._places, self._counted_s = self._count_places(), now_s
        progress = self._ask_workers(since_s)
        leases = [each.job.lease for each in self.attempts] + [each.lease for each in self.unplaced]
        held = jobs.renew(self.engine, leases, lease_s=self.lease_s, progress=progress)
        lost = [each for each in self.attempts if each.job.lease not in held]
        adopted = controllers.adopted_by_others(self.engine, [each.job.lease for each in lost])
        for attempt in lost:
            if attempt.job.lease in adopted:
                log.warning("lost      %s: another controller adopted it", attempt.job.name)
                self.attempts.remove(attempt)
                self.pool.forget(attempt.placement)
            else:
                log.warning("lost      %s: its lease is gone; stopping it", attempt.job.name)
                self._drop(attempt)
        self.unplaced = [claim for claim in self.unplaced if claim.lease in held]
        if self.demand.scales:
            waiting = [request_of(claim.resources) for claim in self.unplaced]
            waiting += within(self.limits, self._running_by_kind(), pending_demand(self.engine))
            self.demand.request((each.placement.request for each in self.attempts), waiting)
        controllers.heartbeat(self.engine, self.owner)

    def _ask_workers(self, since_s: float) -> dict[jobs.Lease, dict[str, Any]]:
        """Return the progress of those that answer; drop those silent for too long."""
        statuses = self.pool.statuses([attempt.placement for attempt in self.attempts])
        progress = {}
        for attempt in list(self.attempts):
            job, placement = attempt.job, attempt.placement
            if self.pool.is_draining(placement):
                attempt.drain()
            answers = statuses.get(placement.name)
            asked = {(status["job_id"], status["token"]) for status in answers or ()}
            if answers and asked == {job.lease[:2]}:
                attempt.answered, attempt.silent_s = True, 0.0
                made = {"node": placement.node, "places": self._places}
                progress[job.lease] = {**answers[0]["progress"], **made}
                if self.pruner.ends(job, attempt.folder):
                    for actor in placement.actors:
                        actor.halt.remote(job.job_id, job.token)
                continue
            attempt.silent_s += since_s
            if attempt.answered and attempt.silent_s > self.lease_s:
                # Stopped, stuck or unreachable: another attempt does it meanwhile.
                self._drop(attempt)
                reason = f"its worker has not answered for {attempt.silent_s:.0f} s"
                if self._accept_published(replace(job, folder=attempt.folder)):
                    continue
                self._fail(job, "NODE", reason)
                self._record_on_nodes(attempt, "NODE")
                for host in set(placement.hosts):
                    self.exclusions.avoid(host)
            elif not attempt.answered and time.monotonic() - attempt.began_s > FIRST_ANSWER_S:
                # Not the job's fault: something else uses the resources that Ray reported as free.
                self._drop(attempt)
                self._release(job, f"its worker did not start within {FIRST_ANSWER_S:.0f} s")
        return progress

    def _count_places(self) -> dict[str, int]:
        places = {
            kind: self.pool.places(request_of(resources))
            for kind, resources in open_resources(self.engine).items()
        }
        return {kind: min(count, self.limits.get(kind, count)) for kind, count in places.items()}

    def _running_by_kind(self) -> Counter[str]:
        return Counter(attempt.job.kind for attempt in self.attempts)

    def _record_on_nodes(self, attempt: RunningAttempt, failure: str | None) -> None:
        for host in set(attempt.placement.hosts):
            if failure == "NODE_FULL":
                self.exclusions.avoid(host)
            if self.exclusions.record(host, attempt.job.job_id, failure):
                log.warning("excluded  node %s: job after job fails there", host)

    def _drop(self, attempt: RunningAttempt) -> None:
        self.attempts.remove(attempt)
        self.pool.kill(attempt.placement)

    def _accept(self, finished: Sequence[tuple[jobs.Claim, str]]) -> set[jobs.Lease]:
        """Accept finished folders; returns the leases whose result counts."""
        for job, folder in finished:
            self.pruner.ends(job, folder)  # validations since the last look inform other trials
        folders = [(job.lease, folder) for job, folder in finished]
        answers = accept_all(self.engine, self.store, folders)
        accepted = set()
        for (job, _), answer in zip(finished, answers, strict=True):
            if isinstance(answer, DataError):
                self._fail(job, "INFRA", str(answer))
            elif answer:
                accepted.add(job.lease)
            else:
                log.warning("refused   %s: another attempt holds its lease", job.name)
        return accepted

    def _fail(self, job: jobs.Claim, failure: str, reason: str) -> None:
        """Charge an attempt with a failure; the database decides whether the job is retried."""
        self._store_is_suspect |= failure == "INFRA"
        state = jobs.fail(self.engine, job.lease, failure=failure, reason=reason)
        log.warning("%-9s %s: %s: %s", state or "refused", job.name, failure, reason)

    def _release(self, job: jobs.Claim, reason: str) -> None:
        """Make a job ready again, uncharged."""
        jobs.release(self.engine, job.lease, reason=reason)


def _may_be_alive(controller: LiveController) -> bool:
    """Return False only where its process ran on this machine and is gone."""
    here = controller.host == socket.gethostname()
    return not here or (controller.pid != os.getpid() and psutil.pid_exists(controller.pid))


def accept_all(
    engine: Engine, store: Store, finished: Sequence[tuple[jobs.Lease, str]]
) -> list[bool | DataError]:
    """Make each folder the result of its job, all of them in one transaction.

    In their order: True; False where the lease no longer holds; a DataError where the folder
    differs from its manifest or lacks what a result needs.
    """
    try:
        held = jobs.finish(engine, [_result(store, *each) for each in finished])
    except DataError as error:
        if len(finished) == 1:
            return [error]
        # one damaged folder must not hold up the others
        return [accept_all(engine, store, [each])[0] for each in finished]
    return [lease in held for lease, _ in finished]


def _result(store: Store, lease: jobs.Lease, folder: str) -> jobs.NewResult:
    try:
        path = store.fetch_results(folder)
        return jobs.NewResult(
            lease=lease,
            folder=folder,
            manifest_sha256=checksum(path / "manifest.json"),
            summary=_read(path / "summary.json") or {},
            provenance=_read(path / "provenance.json") or {},
            scores=_read(path / "per_query.json"),
        )
    except OSError as error:  # no right to read it, a folder in a file's place, a broken disk
        raise DataError(
            f"{error.filename or folder}: {error.strerror}: run its job again"
        ) from error


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): run its job again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object: run its job again")
    return content

"""What other controllers left: attempts whose workers live are adopted, the rest are settled."""

import logging
import os
import socket
from typing import Any

import psutil
import ray

from db import controllers, jobs
from orchestrator.assignments import Assignment, actors_of, names_of
from orchestrator.ledger import Ledger
from orchestrator.pool import Pool
from orchestrator.remote import is_published
from orchestrator.requests import request_of

log = logging.getLogger("xsweep")


def adopt(ledger: Ledger, pool: Pool) -> list[Assignment]:
    """Take over from dead controllers: live workers, finished folders, lost jobs.

    Workers and placement groups that no job holds are removed, unless another controller lives.
    """
    others = [each for each in controllers.live(ledger.engine) if _may_live(each)]
    alive = {each.owner for each in others} - {ledger.owner}
    workers = pool.survivors()
    adopted: list[Assignment] = []
    kept: set[str] = set()
    for held in jobs.running(ledger.engine):
        if held.owner in alive or not ledger.take_over(held):
            continue
        if actors := actors_of(held, workers):
            kept |= names_of(held)
            adopted.append(_go_on(pool, held, actors))
        elif held.folder and is_published(ledger.store, held.folder):
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
    for held in overdue:
        if actors := actors_of(held, workers):
            if ledger.take_over(held):
                adopted.append(_go_on(pool, held, actors))
        elif jobs.requeue_expired(
            ledger.engine, job_id=held.job_id, token=held.token, owner=held.owner
        ):
            log.warning("requeued  %s: its lease ran out and its worker is gone", held.name)
    return adopted


def _go_on(pool: Pool, held: jobs.Claim, actors: list[Any]) -> Assignment:
    request = request_of(held.resources)
    placement = pool.adopt(held.actor or "", request, actors, held.node)
    awaited = {actor.outcome.remote(held.token): rank for rank, actor in enumerate(actors)}
    log.info("adopted   %s", held.name)
    return Assignment(held, held.folder or "", placement, awaited, answered=True)


def _may_live(controller: controllers.LiveController) -> bool:
    """False only where its process is surely gone: it was on this machine and is no more."""
    here = controller.host == socket.gethostname()
    return not here or (controller.pid != os.getpid() and psutil.pid_exists(controller.pid))

"""Programs that claim jobs and are killed while they do; run in processes of their own."""

import random
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from job_table import begin, finish, submit

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.jobs import Claim, NewJob
from xsweep.db.status import list_jobs
from xsweep.errors import ConfigError


def start(program: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that shares nothing with this one: a fork of a clean server, quick to start."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["claimers"])
    process = context.Process(target=program, args=arguments, daemon=True)
    process.start()
    return process


def work(url: str, owner: str, seed: int) -> None:
    """Claim and end jobs, one way or the other, until there are none left to claim."""
    random.seed(seed)
    engine = connect(url)
    while claims := jobs.claim(engine, owner=owner, limit=random.randint(1, 4), lease_s=600):
        for claim in claims:
            end_somehow(engine, claim, owner)


def end_somehow(engine: Any, claim: Claim, owner: str) -> None:
    """Nearly always a result; sometimes the start of one, a failure or a drain."""
    begin(engine, claim, actor=owner, folder=f"store/{claim.name}/{claim.token}")
    jobs.renew(engine, [claim.lease], lease_s=600)
    chance = random.random()
    if chance < 0.05:
        jobs.release(engine, claim.lease, reason="drain")
    elif chance < 0.1:
        failure = {"failure": "PREEMPTED", "reason": "notice", "retry_after_s": 0}
        jobs.fail(engine, claim.lease, **failure)
    else:
        finish(engine, claim)


def reap(url: str, dead: list[str]) -> None:
    """Take back all that these owners hold and whose lease ran out."""
    engine = connect(url)
    for held in jobs.expired(engine):
        if held.owner in dead:
            jobs.requeue_expired(engine, held.lease)


def sleepwalk(url: str, owner: str, pipe: Connection) -> None:
    """Claim one job, send the claim, and finish the job on the next message."""
    engine = connect(url)
    (claim,) = jobs.claim(engine, owner=owner, limit=1, lease_s=600)
    pipe.send(claim)
    pipe.recv()
    pipe.send(finish(engine, claim, folder=f"store/{owner}"))


def live_elsewhen(url: str, owner: str, skew_s: float, pipe: Connection) -> None:
    """Claim one job and look for expired ones, twice, with a clock that is off."""
    real = time.time
    time.time = lambda: real() + skew_s
    engine = connect(url)
    (claim,) = jobs.claim(engine, owner=owner, limit=1, lease_s=60)
    jobs.renew(engine, [claim.lease], lease_s=60)
    pipe.send((claim, time.time(), jobs.expired(engine)))
    pipe.recv()
    reap(url, ["right"])
    pipe.send([row.name for row in list_jobs(engine, state="ready")])


def meddle(url: str, seed: int, rounds: int) -> None:
    """Cancel, pause, resume and retry whatever there is, at random."""
    chance = random.Random(seed)
    engine = connect(url)
    names = [row.name for row in list_jobs(engine)]
    for _ in range(rounds):
        name = chance.choice(names)
        deed = chance.choice(["cancel", "cancel sweep", "pause", "resume", "retry"])
        try:
            if deed == "cancel":
                jobs.cancel(engine, job=name)
            elif deed == "cancel sweep":
                jobs.cancel(engine, sweep="study")
            elif deed in ("pause", "resume"):
                (jobs.pause if deed == "pause" else jobs.resume)(engine, "study")
        except ConfigError:
            pass  # a cancelled sweep is neither paused nor resumed
        if deed in ("retry", "cancel sweep", "pause"):
            jobs.retry(engine, sweep="study")
            jobs.resume(engine, "study")


def submit_to(url: str, grid: list[NewJob]) -> None:
    """Submit a grid."""
    submit(connect(url), grid)

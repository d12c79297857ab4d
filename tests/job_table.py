"""Small grids and shorthands for tests of the job table; names stand for identities."""

import hashlib
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, update

from xsweep.db import jobs
from xsweep.db.jobs import Claim, NewJob
from xsweep.db.schema import Attempt
from xsweep.db.status import list_jobs, summary


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def new_job(name: str, *parents: str, kind: str = "train", **more: Any) -> NewJob:
    """A job whose parents' roles are their names."""
    return NewJob(
        identity=identity(name),
        kind=kind,
        name=name,
        spec={"name": name},
        parents={parent: identity(parent) for parent in parents},
        **more,
    )


def study(seeds: Iterable[int] = (1, 2)) -> list[NewJob]:
    """tokens -> a training per seed -> two evaluations of each, which also need candidates."""
    grid = [new_job("tokens", kind="prepare"), new_job("candidates", kind="prepare")]
    for seed in seeds:
        train = f"train s{seed}"
        grid.append(new_job(train, "tokens"))
        for collection in ("dl19", "dl20"):
            labels = {"seed": seed, "collection": collection}
            name = f"evaluate s{seed} {collection}"
            grid.append(new_job(name, train, "candidates", kind="evaluate", labels=labels))
    return grid


def submit(engine: Engine, grid: list[NewJob], name: str = "study") -> jobs.Submission:
    return jobs.add_sweep(engine, name=name, grid="name: study", jobs=grid)


def take(engine: Engine, owner: str = "alice", lease_s: float = 60, **more: Any) -> Claim:
    (claim,) = jobs.claim(engine, owner=owner, limit=1, lease_s=lease_s, **more)
    return claim


def begin(engine: Engine, claim: Claim, **more: str) -> bool:
    place = {"actor": "worker", "node": "n", "folder": "f", "log": "l"}
    return bool(jobs.mark_started(engine, {claim.lease: jobs.Place(**(place | more))}))


def finish(engine: Engine, claim: Claim, **more: Any) -> bool:
    result = {
        "folder": f"store/{claim.name}/{claim.token}",
        "manifest_sha256": identity(claim.name),
        "summary": {"steps": 10},
        "provenance": {"commit": "c0ffee"},
    }
    return bool(jobs.finish(engine, [jobs.NewResult(lease=claim.lease, **(result | more))]))


def fail(engine: Engine, claim: Claim, failure: str = "UNKNOWN", **more: Any) -> str | None:
    given = {"reason": "it broke", "retry_after_s": 0}
    return jobs.fail(engine, claim.lease, failure=failure, **(given | more))


def run_all(engine: Engine) -> list[str]:
    """Claim and finish until nothing is left; the names in their order."""
    done = []
    while claims := jobs.claim(engine, owner="alice", limit=1, lease_s=60):
        assert finish(engine, claims[0])
        done.append(claims[0].name)
    return done


def expire(engine: Engine, claim: Claim) -> None:
    """Let the lease have run out long ago, without anybody waiting for it."""
    with engine.begin() as connection:
        lease = update(Attempt).where(Attempt.job_id == claim.job_id, Attempt.outcome.is_(None))
        connection.execute(lease.values(lease_until=1.0))


def states(engine: Engine) -> dict[str, str]:
    """State by name."""
    return {row.name: row.state for row in list_jobs(engine)}


def counts(engine: Engine, sweep: str = "study") -> dict[str, int]:
    """Jobs of the sweep by state."""
    (status,) = summary(engine, sweep).sweeps
    found: dict[str, int] = {}
    for by_state in status.counts.values():
        for state, count in by_state.items():
            found[state] = found.get(state, 0) + count
    return found

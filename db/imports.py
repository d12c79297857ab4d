"""Results that another database accepted, taken over as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from db.acceptance import NewResult, finish_held
from db.bulk import pieces
from db.clock import now_s
from db.events import record
from db.exports import StoredResult
from db.schema import Attempt, Job
from db.scores import PackedScores, pack_scores
from db.states import State
from db.submission import NewJob, add_in, parents_first
from db.transactions import transact


@dataclass(frozen=True, kw_only=True)
class ImportCount:
    """What became of the results, in jobs."""

    accepted: int
    known: int
    """Were done here before; nothing of them changed."""
    refused: int
    """Are running here, or wait for work that the archive does not hold: left to this database."""


def import_results(
    engine: Engine,
    *,
    name: str,
    grid: str,
    jobs: Sequence[NewJob],
    results: Mapping[str, StoredResult],
    owner: str,
) -> ImportCount:
    """Add a sweep and accept its results, in one transaction: all of it, or nothing.

    Every result becomes an attempt of its own under `owner`, so that the history tells it from what
    was computed here. A job that has a result keeps it. Raises ConfigError as `add_sweep` does, and
    DataError for scores that are not finite.
    """
    ordered = parents_first(jobs)
    places = {job.identity: str(job.labels.get("collection", "")) for job in jobs}
    packed = {key: pack_scores(each.scores, places[key]) for key, each in results.items()}

    def work(connection: Connection) -> ImportCount:
        add_in(connection, name, grid, ordered)
        known = _count(connection, list(results), State.DONE)
        accepted = 0
        while ready := _take(connection, list(results), owner, results):
            found: list[tuple[NewResult, PackedScores]] = []
            for row in ready:
                result = results[row.identity]
                told = NewResult(
                    job_id=row.id,
                    token=row.token,
                    folder=result.folder,
                    manifest_sha256=result.manifest_sha256,
                    summary=result.summary,
                    provenance=result.provenance,
                )
                found.append((told, packed[row.identity]))
            for piece in pieces(found):
                accepted += len(finish_held(connection, piece, owner))
        refused = len(results) - accepted - known
        return ImportCount(accepted=accepted, known=known, refused=refused)

    return transact(engine, work)


def _take(
    connection: Connection, identities: list[str], owner: str, results: Mapping[str, StoredResult]
) -> list[Any]:
    """Claim the jobs that are ready now; each result is an attempt that took as long as it did."""
    taken: list[Any] = []
    for piece in pieces(identities):
        claimed = (
            update(Job)
            .where(Job.identity.in_(piece), Job.state == State.READY)
            .values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
            .returning(Job.id, Job.identity, Job.token)
        )
        taken += connection.execute(claimed).all()
    for row in taken:
        result = results[row.identity]
        attempt = {"job_id": row.id, "token": row.token, "owner": owner, "folder": result.folder}
        times = {
            "claimed_at": now_s() - result.seconds,
            "started_at": now_s() - result.seconds,
            "lease_until": now_s() + 60,
        }
        connection.execute(insert(Attempt).values(**attempt, **times))
        record(connection, "claimed", attempt)
    return taken


def _count(connection: Connection, identities: list[str], state: State) -> int:
    found = 0
    for piece in pieces(identities):
        there = select(Job.id).where(Job.identity.in_(piece), Job.state == state)
        found += len(connection.scalars(there).all())
    return found

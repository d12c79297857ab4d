"""Which attempt wrote which folder, and what became of it and of its job."""

from dataclasses import dataclass

from sqlalchemy import Engine, select

from db.schema import Attempt, Job, Result
from db.states import State
from db.transactions import reading


@dataclass(frozen=True, kw_only=True)
class AttemptFolder:
    """One attempt's folder, below the store's root."""

    identity: str
    name: str
    folder: str
    live: bool
    accepted: bool
    job_done: bool


def load_folders(engine: Engine) -> list[AttemptFolder]:
    """The folders of all attempts that noted one, by job and token."""
    query = (
        select(Job.identity, Job.name, Job.state, Attempt.folder, Attempt.outcome, Attempt.token)
        .add_columns(Result.token.label("accepted"))
        .join_from(Attempt, Job)
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Attempt.folder.is_not(None))
        .order_by(Attempt.job_id, Attempt.token)
    )
    with reading(engine) as connection:
        return [
            AttemptFolder(
                identity=row.identity,
                name=row.name,
                folder=row.folder,
                live=row.outcome is None,
                accepted=row.accepted == row.token,
                job_done=row.state == State.DONE,
            )
            for row in connection.execute(query)
        ]

"""Finding what a person means: a sweep by name, a job by id, identity, its beginning, or name."""

from collections.abc import Iterable

from sqlalchemy import Connection, Engine, select

from db.bulk import pieces
from db.schema import Job, Sweep
from db.states import State
from db.transactions import reading
from xsweep import ConfigError, did_you_mean

NAMES_COMPARED = 20_000
LISTED = 5


def find_sweep(engine: Engine, text: str) -> int:
    """The id of the sweep of that name or id. Raises ConfigError with the nearest names."""
    with reading(engine) as connection:
        return sweep_id(connection, text)


def find_job(engine: Engine, text: str) -> int:
    """The id of the job with that id, identity, beginning of an identity (4 digits on), or name.

    Raises ConfigError when there is none, with the nearest names, or more than one.
    """
    with reading(engine) as connection:
        return job_id(connection, text)


def sweep_id(connection: Connection, sweep: str | int) -> int:
    """See `find_sweep`."""
    rows = connection.execute(select(Sweep.id, Sweep.name).order_by(Sweep.id)).all()
    for id_, name in rows:
        if sweep == name or str(sweep) == str(id_):
            return id_
    names = [name for _, name in rows]
    raise ConfigError(f"no sweep {str(sweep)!r}: {_nearest(str(sweep), names)}")


def job_id(connection: Connection, job: str | int) -> int:
    """See `find_job`."""
    text = str(job).strip()
    if text.isascii() and text.isdigit() and len(text) < 19:
        found = connection.scalar(select(Job.id).where(Job.id == int(text)))
        if found is not None:
            return found
    matches = [Job.name == text]
    if len(text) >= 4 and all(c in "0123456789abcdef" for c in text):
        # a range and not LIKE: every database's index on text serves it
        matches.append(Job.identity.between(text, text + "g"))
    for match in matches:
        rows = connection.execute(
            select(Job.id, Job.identity, Job.name).where(match).order_by(Job.id).limit(LISTED + 1)
        ).all()
        if len(rows) == 1:
            return rows[0].id
        if rows:
            listed = ", ".join(f"{row.identity[:12]} ({row.name})" for row in rows[:LISTED])
            more = ", ..." if len(rows) > LISTED else ""
            raise ConfigError(
                f"job {text!r} is ambiguous: {listed}{more}; give more of the identity"
            )
    names = connection.scalars(select(Job.name).order_by(Job.id.desc()).limit(NAMES_COMPARED))
    raise ConfigError(f"no job {text!r}: {_nearest(text, names)}")


def identity_of(engine: Engine, id_: int) -> str:
    """The identity of a job that `find_job` found."""
    with reading(engine) as connection:
        return str(connection.scalar(select(Job.identity).where(Job.id == id_)))


def done_identities(engine: Engine, identities: Iterable[str]) -> frozenset[str]:
    """Those of the identities whose job has an accepted result."""
    found: set[str] = set()
    with reading(engine) as connection:
        for piece in pieces(list(identities)):
            done = select(Job.identity).where(Job.identity.in_(piece), Job.state == State.DONE)
            found.update(connection.scalars(done))
    return frozenset(found)


def _nearest(text: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    if not known:
        return "the database has none yet; submit a grid first"
    return did_you_mean(text, known, most=3) or f"there is {', '.join(known[:LISTED])}"

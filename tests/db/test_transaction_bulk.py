import pytest
from sqlalchemy import select

from xsweep.db.jobs import NewJob, add_sweep
from xsweep.db.schema import Job
from xsweep.db.transaction import among

IDENTITIES = [f"{number:064x}" for number in range(3)]


@pytest.fixture
def jobs(engine):
    made = [
        NewJob(identity=identity, kind="train", name=identity[-1], spec={})
        for identity in IDENTITIES
    ]
    add_sweep(engine, name="s", grid="", jobs=made)
    with engine.connect() as connection:
        return dict(connection.execute(select(Job.identity, Job.id)).tuples().all())


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], set()),
        (IDENTITIES[:1], {"0"}),
        ([IDENTITIES[2], IDENTITIES[2], "no such", "' OR 1=1 --", "ünïcode\\"], {"2"}),
        # More than any database has parameters for.
        ([*IDENTITIES[1:], *(f"other {number}" for number in range(100_000))], {"1", "2"}),
    ],
)
def test_texts_are_found_among_any_number_of_values(engine, jobs, asked, found):
    with engine.connect() as connection:
        names = select(Job.name).where(among(connection, Job.identity, asked))
        assert set(connection.scalars(names)) == found


def test_numbers_are_found_among_any_number_of_values(engine, jobs):
    ids = sorted(jobs.values())
    with engine.connect() as connection:
        for asked in ([], ids[:2], [ids[0], *range(10**9, 10**9 + 100_000)]):
            chosen = select(Job.id).where(among(connection, Job.id, asked))
            assert set(connection.scalars(chosen)) == set(asked) & set(ids)

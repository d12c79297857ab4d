import pytest
from job_table import fail, finish, new_job, submit, take
from sqlalchemy import update

from xsweep.db import jobs
from xsweep.db.results import load_costs
from xsweep.db.schema import Attempt


def lasted(engine, claim, seconds: float) -> None:
    """As if the attempt had taken so long: it started that much before its end."""
    with engine.begin() as connection:
        connection.execute(
            update(Attempt)
            .where(Attempt.job_id == claim.job_id, Attempt.token == claim.token)
            .values(started_at=Attempt.ended_at - seconds)
        )


def test_the_accepted_attempt_and_the_lost_ones_are_told_apart(engine):
    submit(engine, [new_job("train"), new_job("other")])
    first = take(engine)
    fail(engine, first, "INFRA")
    second = next(
        claim
        for claim in jobs.claim(engine, owner="me", limit=2, lease_s=60)
        if claim.job_id == first.job_id
    )
    finish(engine, second)
    lasted(engine, first, 30.0)
    lasted(engine, second, 120.0)
    (cost,) = load_costs(engine, "study")
    assert cost.job_id == first.job_id
    assert (cost.seconds, cost.lost_s) == (pytest.approx(120.0), pytest.approx(30.0))

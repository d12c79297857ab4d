import pytest
from job_table import begin, fail, finish, identity, new_job, study, submit, take
from sqlalchemy import Engine, update

from xsweep.db import jobs
from xsweep.db.results import done_identities, load_costs, load_durations, load_folders
from xsweep.db.schema import Attempt


def lasted(engine, claim, seconds: float) -> None:
    """Make the attempt last for some seconds, by an earlier start."""
    with engine.begin() as connection:
        connection.execute(
            update(Attempt)
            .where(Attempt.job_id == claim.job_id, Attempt.token == claim.token)
            .values(started_at=Attempt.ended_at - seconds)
        )


def test_costs_separate_the_accepted_attempt_from_the_lost_ones(engine):
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


def test_durations_are_of_accepted_attempts_with_their_parents_specs(engine: Engine) -> None:
    submit(engine, study(seeds=[1]))
    for _ in range(2):
        finish(engine, take(engine, kinds=["prepare"]))
    fail(engine, take(engine), failure="HANG")
    finish(engine, take(engine), provenance={"hardware": {"gpus": ["X"]}})
    found = load_durations(engine)
    assert sorted(done.kind for done in found) == ["prepare", "prepare", "train"]
    (train,) = (done for done in found if done.kind == "train")
    assert train.parents == {"tokens": {"name": "tokens"}}
    assert (train.hardware, train.seconds >= 0) == ({"gpus": ["X"]}, True)


def test_folders_are_listed_with_the_outcome_of_their_attempts(engine: Engine) -> None:
    submit(engine, [study()[0]])
    claim = take(engine)
    begin(engine, claim, folder="first")
    assert [(each.folder, each.live) for each in load_folders(engine)] == [("first", True)]
    fail(engine, claim, failure="HANG")
    claim = take(engine)
    begin(engine, claim, folder="second")
    finish(engine, claim, folder="second")
    rows = [(each.folder, each.live, each.accepted, each.job_done) for each in load_folders(engine)]
    assert rows == [("first", False, False, True), ("second", False, True, True)]


def test_identities_with_a_result_are_found(engine: Engine) -> None:
    submit(engine, study())
    finish(engine, claim := take(engine))
    every = [identity(name) for name in ("tokens", "candidates", "train s1")]
    assert done_identities(engine, every) == {claim.identity}

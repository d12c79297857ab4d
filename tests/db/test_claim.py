import pytest
from job_table import begin, expire, fail, finish, new_job, run_all, study, submit, take
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import IntegrityError

from xsweep.db import jobs
from xsweep.db.events import history
from xsweep.db.schema import Attempt
from xsweep.db.status import summary


def test_a_claim_carries_all_that_a_worker_needs(engine):
    submit(engine, [new_job("tokens", resources={"cpus": 2}), new_job("train", "tokens")])
    first = take(engine)
    assert (first.name, first.kind, first.token) == ("tokens", "train", 1)
    assert (first.spec, first.resources, first.inputs) == ({"name": "tokens"}, {"cpus": 2}, {})
    finish(engine, first, folder="store/tokens")
    assert take(engine).inputs == {"tokens": "store/tokens"}


def test_a_claim_takes_no_more_jobs_than_its_limit(engine):
    submit(engine, [new_job(f"train {n}") for n in range(10)])
    assert len(jobs.claim(engine, owner="alice", limit=3, lease_s=60)) == 3
    assert jobs.claim(engine, owner="alice", limit=0, lease_s=60) == []
    assert len(jobs.claim(engine, owner="bob", limit=100, lease_s=60)) == 7


def test_jobs_are_claimed_by_longest_chain_then_age(engine):
    grid = [
        new_job("old"),
        new_job("new"),
        new_job("short", cost=5),
        new_job("start", cost=5),
        new_job("end", "start", cost=5),
    ]
    submit(engine, grid)
    claims = jobs.claim(engine, owner="alice", limit=10, lease_s=60)
    assert [claim.name for claim in claims] == ["start", "short", "old", "new"]


def rows_of(system: str, *parents: str) -> jobs.NewJob:
    return new_job(system, *parents, kind="evaluate", labels={"system": system})


def test_rows_without_training_come_first_and_a_model_is_evaluated_before_the_next_training(engine):
    grid = [
        new_job("teach", kind="teach", cost=500),
        new_job("candidates", kind="prepare", cost=10),
        new_job("train s1", cost=100),
        new_job("train s2", cost=90),
        new_job("distill", "teach", cost=100),
        rows_of("teacher", "candidates"),
        rows_of("first_stage", "candidates"),
        new_job("tokens", kind="prepare"),
    ]
    for run in ("train s1", "train s2", "distill"):
        grid.append(new_job(f"test {run}", run, "candidates", "tokens", kind="evaluate"))
    submit(engine, grid)
    early = ["candidates", "first_stage", "teacher", "teach", "tokens"]
    last = ["train s2", "test train s2"]
    run = ["train s1", "test train s1", "distill", "test distill"]
    assert run_all(engine) == early + run + last


def test_a_row_that_a_later_sweep_adds_hurries_what_it_needs(engine):
    submit(engine, [new_job("candidates", kind="prepare"), new_job("long", kind="teach", cost=9)])
    submit(engine, [new_job("candidates", kind="prepare"), rows_of("first_stage", "candidates")])
    assert run_all(engine) == ["candidates", "first_stage", "long"]


def test_the_last_trainings_start_before_evaluations(engine):
    submit(engine, study(seeds=(1, 2, 3, 4)))
    finish(engine, take(engine))
    finish(engine, take(engine))
    first, second = take(engine), take(engine, running=1)
    assert (first.name, second.name) == ("train s1", "train s2")
    finish(engine, first)
    # 2 trainings are left: more than 1.5 for one running job, but not for two
    assert take(engine, running=1).name == "evaluate s1 dl19"
    assert take(engine, running=2).name == "train s3"
    assert take(engine, running=3, kinds=["evaluate"]).name == "evaluate s1 dl20"
    assert take(engine, running=4).name == "train s4"


def test_kinds_and_exclusions_limit_what_is_claimed(engine):
    submit(engine, study())
    tokens, candidates = jobs.claim(engine, owner="alice", limit=5, lease_s=60, kinds=["prepare"])
    assert jobs.claim(engine, owner="alice", limit=5, lease_s=60, kinds=[]) == []
    jobs.release(engine, tokens.lease, reason="no room")
    others = jobs.claim(engine, owner="alice", limit=5, lease_s=60, exclude=[tokens.job_id])
    assert others == []
    jobs.release(engine, candidates.lease, reason="no room")
    assert take(engine, exclude=[tokens.job_id]).job_id == candidates.job_id


def test_a_job_is_not_claimed_before_its_retry_time(engine):
    submit(engine, [new_job("train")])
    assert fail(engine, take(engine), retry_after_s=3600) == "ready"
    assert jobs.claim(engine, owner="alice", limit=1, lease_s=60) == []


def test_a_claim_lists_the_folders_of_earlier_attempts_newest_first(engine):
    submit(engine, [new_job("data"), new_job("train", "data")])
    finish(engine, take(engine))  # another job's result retires none of them
    for _ in range(3):
        claim = take(engine)
        place = {"actor": "a", "node": "n", "log": "l", "folder": f"store/{claim.token}"}
        assert begin(engine, claim, **place)
        jobs.release(engine, claim.lease, reason="drain")
    assert take(engine).previous == ("store/3", "store/2", "store/1")


def test_progress_appears_in_the_summary(engine):
    submit(engine, [new_job("train")])
    claim = take(engine)
    progress = {claim.lease: {"done": 50, "total": 200, "loss": 0.25}}
    assert jobs.renew(engine, [claim.lease], lease_s=60, progress=progress) == {claim.lease}
    (row,) = summary(engine).running
    assert row.progress == progress[claim.lease]


def test_renewing_extends_only_leases_that_hold(engine):
    submit(engine, [new_job("mine"), new_job("theirs"), new_job("lost")])
    mine, theirs, lost = (take(engine, owner) for owner in ("alice", "bob", "alice"))
    jobs.cancel(engine, job="lost")
    held = [claim.lease._replace(owner="alice") for claim in (mine, theirs, lost)]
    assert jobs.renew(engine, held, lease_s=600) == {held[0]}
    assert jobs.renew(engine, [], lease_s=600) == set()
    left = {row.name: row.lease_left_s for row in summary(engine).running}
    assert 590 < left["mine"] <= 600
    assert left["theirs"] < 61


def test_an_expired_lease_can_be_renewed_until_another_owner_takes_the_job(engine):
    submit(engine, [new_job("train")])
    claim = take(engine)
    expire(engine, claim)
    assert jobs.renew(engine, [claim.lease], lease_s=60) == {claim.lease}
    assert jobs.expired(engine) == []
    expire(engine, claim)
    assert jobs.requeue_expired(engine, claim.lease)
    assert jobs.renew(engine, [claim.lease], lease_s=60) == set()


def test_a_start_under_an_old_token_is_refused(engine):
    submit(engine, [new_job("train")])
    old = take(engine)
    expire(engine, old)
    jobs.requeue_expired(engine, old.lease)
    take(engine, "bob")
    place = {"actor": "zombie", "node": "n", "log": "l", "folder": "f"}
    assert not begin(engine, old, **place)
    (row,) = jobs.running(engine)
    assert (row.owner, row.actor) == ("bob", None)


def test_a_job_of_a_paused_sweep_is_claimed_for_an_active_one(engine):
    submit(engine, [new_job("shared"), new_job("alone")], name="one")
    submit(engine, [new_job("shared")], name="two")
    jobs.pause(engine, "one")
    claims = jobs.claim(engine, owner="alice", limit=5, lease_s=60)
    assert [claim.name for claim in claims] == ["shared"]
    jobs.resume(engine, "one")
    assert take(engine).name == "alone"


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_leases_do_not_depend_on_the_clock_of_the_process(engine, monkeypatch, skew_s):
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    submit(engine, [new_job("train")])
    claim = take(engine, lease_s=60)
    assert jobs.expired(engine) == []
    (held,) = summary(engine).running
    assert 59 < held.lease_left_s <= 60
    expire(engine, claim)
    assert len(jobs.expired(engine)) == 1


def test_a_constraint_forbids_a_second_live_attempt(engine: Engine):
    submit(engine, [new_job("train")])
    jobs.release(engine, take(engine).lease, reason="drain")
    take(engine)
    revived = update(Attempt).where(Attempt.token == 1)
    revived = revived.values(outcome=None, ended_at=None, lease_until=1.0)
    with pytest.raises(IntegrityError, match=r"UNIQUE|unique"), engine.begin() as connection:
        connection.execute(revived)


def test_claiming_and_finishing_one_job_takes_few_statements(engine):
    submit(engine, [new_job("alone")])
    statements: list[str] = []
    event.listen(
        engine, "before_cursor_execute", lambda *given: statements.append(given[2].split(" ", 1)[0])
    )
    assert finish(engine, take(engine))
    # two of SQLite's begin the transactions, which the driver does for PostgreSQL
    expected = {"postgresql": 3, "sqlite": 11}
    assert len(statements) == expected[engine.dialect.name], statements


def test_starts_are_recorded_together_except_those_of_lost_leases(engine):
    submit(engine, [new_job("a"), new_job("b")])
    claims = jobs.claim(engine, owner="alice", limit=2, lease_s=60)
    expire(engine, claims[1])
    jobs.requeue_expired(engine, claims[1].lease)
    places = {claim.lease: jobs.Place("w", "n", "f", "l") for claim in claims}
    assert jobs.mark_started(engine, places) == {claims[0].lease}
    (row,) = jobs.running(engine)
    assert (row.name, row.actor, row.folder) == ("a", "w", "f")
    assert [e.job_id for e in history(engine) if e.kind == "started"] == [claims[0].job_id]
    assert jobs.mark_started(engine, {}) == set()

import threading

import pytest
from job_table import begin, expire, fail, finish, new_job, states, submit, take
from sqlalchemy import event

from xsweep.db import controllers, jobs
from xsweep.db.check import check
from xsweep.db.controllers import adopted_by_others
from xsweep.db.events import history
from xsweep.db.status import summary


@pytest.fixture
def lost(engine):
    """An attempt of alice whose lease ran out."""
    submit(engine, [new_job("train")])
    claim = take(engine, "alice")
    begin(engine, claim, actor="xsweep-1-1")
    expire(engine, claim)
    return claim


def test_the_job_of_an_expired_lease_is_claimed_again_under_a_larger_token(engine, lost):
    (overdue,) = jobs.expired(engine)
    assert (overdue.job_id, overdue.token, overdue.owner) == (lost.job_id, 1, "alice")
    assert summary(engine).running[0].lease_left_s < 0
    assert jobs.requeue_expired(engine, lost.lease)
    again = take(engine, "bob")
    assert (again.job_id, again.token, again.previous) == (lost.job_id, 2, ("f",))


def test_requeueing_needs_the_right_owner(engine, lost):
    assert not jobs.requeue_expired(engine, lost.lease._replace(owner="another"))
    assert states(engine) == {"train": "running"}


def test_an_unexpired_lease_is_not_taken_away(engine):
    submit(engine, [new_job("train")])
    claim = take(engine, "alice")
    assert jobs.expired(engine) == []
    assert not jobs.requeue_expired(engine, claim.lease)


def test_of_two_reapers_one_takes_the_job(engine, lost):
    barrier = threading.Barrier(2)
    taken = []

    def reap():
        barrier.wait()
        taken.append(jobs.requeue_expired(engine, lost.lease))

    threads = [threading.Thread(target=reap) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, True]
    assert [event.kind for event in history(engine)].count("expired") == 1


def test_an_adopted_attempt_belongs_to_the_new_owner_only(engine, lost):
    adopted = jobs.adopt(engine, lost, owner="bob", lease_s=60)
    assert jobs.adopt(engine, lost, owner="bob", lease_s=60) == adopted  # a reply was lost
    assert jobs.adopt(engine, lost, owner="carol", lease_s=60) is None
    assert not jobs.requeue_expired(engine, lost.lease)
    assert jobs.renew(engine, [lost.lease, adopted.lease], lease_s=60) == {adopted.lease}
    (held,) = jobs.running(engine)
    assert (held.owner, held.actor, held.token) == ("bob", "xsweep-1-1", 1)
    assert [event.detail for event in history(engine) if event.kind == "adopted"] == [
        {"from": "alice"}
    ]


def test_a_result_is_accepted_after_its_lease_expired_while_nobody_took_the_job(engine, lost):
    assert finish(engine, lost)
    assert states(engine) == {"train": "done"}


def test_an_owner_learns_which_of_its_attempts_others_adopted_even_after_their_end(engine, lost):
    assert adopted_by_others(engine, [lost.lease]) == set()
    adopted = jobs.adopt(engine, lost, owner="bob", lease_s=60)
    assert adopted_by_others(engine, [lost.lease]) == {lost.lease}
    assert finish(engine, adopted)
    assert adopted_by_others(engine, [lost.lease]) == {lost.lease}
    assert adopted_by_others(engine, [adopted.lease]) == set()
    assert adopted_by_others(engine, []) == set()


def test_an_ended_attempt_can_neither_be_adopted_nor_requeued(engine, lost):
    fail(engine, lost)
    assert jobs.adopt(engine, lost, owner="bob", lease_s=60) is None
    assert not jobs.requeue_expired(engine, lost.lease)


def test_a_new_controller_with_the_host_and_pid_of_a_dead_one_is_another_owner(engine):
    submit(engine, [new_job("train")])
    for owner in ("before", "after"):  # the same container started again: pid 1 both times
        controllers.register(engine, owner=owner, host="pod-0", pid=1)
    claim = take(engine, "before")
    after = claim.lease._replace(owner="after")
    assert [held.owner for held in jobs.running(engine)] == ["before"]
    assert jobs.renew(engine, [after], lease_s=60) == set()
    expire(engine, claim)
    (orphan,) = jobs.expired(engine)
    assert orphan.owner == "before"
    assert not jobs.requeue_expired(engine, after)
    assert jobs.requeue_expired(engine, claim.lease)
    assert take(engine, "after").token == 2
    assert not finish(engine, claim)


def test_a_reaper_that_dies_while_requeueing_changes_nothing(engine, lost):
    def die(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO event"):
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", die)
    with pytest.raises(KeyboardInterrupt):
        jobs.requeue_expired(engine, lost.lease)
    event.remove(engine, "before_cursor_execute", die)
    assert states(engine) == {"train": "running"}
    assert check(engine) == []
    assert jobs.requeue_expired(engine, lost.lease)
    assert check(engine) == []


def test_a_job_that_loses_its_machine_every_time_fails_in_the_end(engine):
    submit(engine, [new_job("poison")])
    for _ in range(9):
        claim = take(engine)
        expire(engine, claim)
        assert jobs.requeue_expired(engine, claim.lease)
    assert states(engine) == {"poison": "failed"}
    assert check(engine) == []

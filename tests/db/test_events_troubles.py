from job_table import expire, fail, new_job, submit, take

from xsweep.db import jobs
from xsweep.db.events import failures_since, last_event
from xsweep.db.status import summary


def test_failures_are_told_with_what_becomes_of_their_jobs(engine):
    submit(engine, [new_job("a"), new_job("b")])
    submit(engine, [new_job("a"), new_job("c")], name="other")
    before = last_event(engine)
    first = take(engine)
    fail(engine, first, "NODE", reason="gone")
    lost = take(engine)
    expire(engine, lost)
    jobs.requeue_expired(engine, lost.lease)
    middle = last_event(engine)
    fail(engine, take(engine), "CONFIG", reason="wrong")
    found = failures_since(engine, before)
    assert [(each.failure, each.next) for each in found] == [
        ("NODE", "ready"),
        ("NODE", "ready"),
        ("CONFIG", "failed"),
    ]
    assert {each.name: each.sweeps for each in found}["a"] == ("study", "other")
    assert [each.failure for each in failures_since(engine, middle)] == ["CONFIG"]
    assert failures_since(engine, last_event(engine)) == []
    latest = summary(engine, failures=2).troubles
    assert [each.failure for each in latest] == ["CONFIG", "NODE"]
    names = {each.name for each in summary(engine, "other").troubles}
    assert "b" not in names
    assert names

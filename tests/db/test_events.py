from dataclasses import replace

from job_table import begin, expire, fail, finish, new_job, submit, take

import xsweep.db.events
from xsweep.db import jobs
from xsweep.db.events import failures_since, first_event_s, history, last_event, record
from xsweep.db.status import summary
from xsweep.db.transaction import transact


def test_failed_attempts_are_listed_with_the_next_state_of_their_jobs(engine):
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


def test_all_changes_of_a_job_are_recorded_in_order(engine):
    submit(engine, [new_job("a"), new_job("b", "a")])
    lost = take(engine, "alice")
    expire(engine, lost)
    jobs.requeue_expired(engine, lost.lease)
    claim = take(engine, "bob")
    begin(engine, claim)
    finish(engine, claim)
    events = history(engine, job_id=claim.job_id)
    assert [(event.kind, event.token, event.owner) for event in events] == [
        ("claimed", 1, "alice"),
        ("expired", 1, "alice"),
        ("claimed", 2, "bob"),
        ("started", 2, "bob"),
        ("accepted", 2, "bob"),
    ]
    assert [event.kind for event in history(engine, latest=1)] == ["ready"]
    assert [event.kind for event in history(engine, sweep_id=1)] == ["submitted"]


def test_an_empty_history_begins_when_it_is_asked_for_and_keeps_its_start(engine):
    began = first_event_s(engine)
    assert began > 0
    submit(engine, [new_job("a")])
    assert first_event_s(engine) == began == history(engine)[0].at


def test_many_events_are_stored_as_a_few_are(engine, monkeypatch):
    submit(engine, [new_job("a")])
    rows = [{"job_id": 1, "token": 2, "owner": "bob", "reason": 'π \\ "\t\n'}, {"sweep_id": 1}]
    transact(engine, lambda connection: record(connection, "noted", *rows))
    monkeypatch.setattr(xsweep.db.events, "MANY", 1)
    transact(engine, lambda connection: record(connection, "noted", *rows))
    events = history(engine, latest=4)
    few, many = events[:2], events[2:]
    assert [replace(event, id=0, at=0) for event in few] == [
        replace(event, id=0, at=0) for event in many
    ]
    assert few[0].detail == {"reason": 'π \\ "\t\n'}
    assert 0 <= many[0].at - few[0].at < 60

"""Announcements: each end of a sweep once, each final failure once."""

from typing import Any

import pytest
from job_table import fail, finish, new_job, study, submit, take
from sqlalchemy import Engine

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.events import history
from xsweep.orchestrator.monitoring import webhook
from xsweep.orchestrator.monitoring.webhook import MOST_JOBS, Announcer, Done, announcing


class Outbox:
    """Takes messages in the webhook's place; delivers them at once, or never."""

    def __init__(self, delivers: bool | None = True) -> None:
        self.messages: list[dict[str, Any]] = []
        self.delivers = delivers

    def post(self, content: dict[str, Any], done: Done = lambda delivered: None) -> None:
        self.messages.append(content)
        if self.delivers is not None:
            done(self.delivers)

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.messages]


def announcer(engine: Engine, outbox: Outbox) -> Announcer:
    return Announcer(engine, outbox)  # type: ignore[arg-type]  # posts as a webhook does


def test_a_finished_sweep_is_announced_once_and_again_after_it_has_grown(engine: Engine) -> None:
    outbox = Outbox()
    looks = announcer(engine, outbox)
    submit(engine, [new_job("a"), new_job("b")])
    finish(engine, take(engine))
    looks.look()
    assert outbox.messages == []
    finish(engine, take(engine))
    for _ in range(3):
        looks.look()
    assert outbox.texts == ["study finished: 2 of 2 jobs done"]
    assert outbox.messages[0]["counts"] == {"done": 2}
    submit(engine, [new_job("c")])
    looks.look()
    finish(engine, take(engine))
    looks.look()
    assert outbox.texts[1:] == ["study finished: 3 of 3 jobs done"]
    assert check(engine) == []


def test_a_sweep_that_finished_before_the_first_controller_is_not_announced(engine: Engine) -> None:
    submit(engine, [new_job("a")])
    finish(engine, take(engine))
    outbox = Outbox()
    announcer(engine, outbox).look()
    assert outbox.messages == []


def test_the_next_controller_announces_what_a_dead_one_could_not(engine: Engine) -> None:
    submit(engine, [new_job("a")])
    died = Outbox(delivers=None)
    before = announcer(engine, died)
    before.look()
    finish(engine, take(engine))
    before.look()
    assert len(died.messages) == 1, "and then it was killed"
    outbox = Outbox()
    announcer(engine, outbox).look()
    assert outbox.texts == ["study finished: 1 of 1 jobs done"]
    later = Outbox()
    announcer(engine, later).look()
    assert later.messages == []
    announced = [event for event in history(engine, sweep_id=1) if event.kind == "announced"]
    assert [event.detail for event in announced] == [{"delivered": True}]


def test_final_failures_are_announced_with_class_reason_and_sweeps(engine: Engine) -> None:
    submit(engine, study(seeds=[1]))
    submit(engine, study(seeds=[1]), name="twin")
    outbox = Outbox()
    looks = announcer(engine, outbox)
    claim = take(engine)
    fail(engine, claim, "NODE", reason="the node is gone")
    looks.look()
    assert outbox.messages == [], "it is tried again"
    again = take(engine)
    fail(engine, again, "DATA", reason="not what was declared\nTraceback")
    looks.look()
    looks.look()
    [message] = [each for each in outbox.messages if each["event"] == "failed"]
    assert message["jobs"] == [
        {
            "job_id": again.job_id,
            "name": again.name,
            "kind": "prepare",
            "failure": "DATA",
            "reason": "not what was declared",
            "sweeps": ["study", "twin"],
        }
    ]
    assert message["text"] == f"1 job failed: {again.name}: DATA: not what was declared"


def test_many_failures_are_one_message(engine: Engine) -> None:
    count = MOST_JOBS + 5
    submit(engine, [new_job(f"job {number:02}") for number in range(count)])
    outbox = Outbox()
    looks = announcer(engine, outbox)
    looks.look()
    for _ in range(count):
        fail(engine, take(engine), "CONFIG", reason="wrong")
    looks.look()
    finished, failed = outbox.messages
    assert (len(failed["jobs"]), failed["more"]) == (MOST_JOBS, 5)
    assert failed["text"].startswith(f"{count} jobs failed: job ")
    assert finished["failed"] == count


def test_the_end_of_a_cancelled_sweep_is_announced(engine: Engine) -> None:
    submit(engine, [new_job("a")])
    outbox = Outbox()
    looks = announcer(engine, outbox)
    looks.look()
    jobs.cancel(engine, sweep="study")
    looks.look()
    assert outbox.texts == ["study finished: 0 of 1 jobs done, 1 cancelled"]
    assert outbox.messages[0]["state"] == "cancelled"


def test_a_message_that_cannot_be_made_disturbs_no_controller(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise TypeError("no text")

    monkeypatch.setattr(webhook, "failed_message", broken)
    with announcing(engine, "http://127.0.0.1:9/") as tick:
        tick()
        submit(engine, [new_job("a")])
        fail(engine, take(engine), "CONFIG")
    assert "TypeError: no text" in caplog.text
    assert "the sweep goes on" in caplog.text

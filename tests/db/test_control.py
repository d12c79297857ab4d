import pytest
import sqlalchemy as sa
from job_table import (
    begin,
    counts,
    expire,
    fail,
    finish,
    identity,
    new_job,
    run_all,
    states,
    study,
    submit,
    take,
)

import xsweep.db.control
from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.events import history
from xsweep.db.results import load_cells
from xsweep.db.status import summary
from xsweep.errors import ConfigError


def test_cancelling_a_sweep_ends_all_jobs_but_the_done_ones(engine):
    submit(engine, study(seeds=[1]))
    finish(engine, take(engine))
    running = take(engine)
    assert jobs.cancel(engine, sweep="study") == 4
    assert counts(engine) == {"done": 1, "cancelled": 4}
    assert jobs.claim(engine, owner="alice", limit=9, lease_s=60) == []
    assert jobs.renew(engine, [running.lease], lease_s=60) == set()
    assert not finish(engine, running)
    assert jobs.cancel(engine, sweep="study") == 0


def test_a_shared_job_is_cancelled_with_the_last_of_its_sweeps(engine):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, study(seeds=[1, 2]), name="two")
    assert jobs.cancel(engine, sweep="one") == 0
    assert jobs.cancel(engine, sweep="two") == 8


def test_cancelling_a_job_skips_the_jobs_that_need_it(engine):
    submit(engine, study(seeds=[1]))
    assert jobs.cancel(engine, job="train s1") == 1
    assert states(engine) == {
        "tokens": "ready",
        "candidates": "ready",
        "train s1": "cancelled",
        "evaluate s1 dl19": "skipped",
        "evaluate s1 dl20": "skipped",
    }


def test_retrying_a_cancelled_sweep_runs_the_missing_jobs(engine):
    submit(engine, study())
    finish(engine, take(engine))
    jobs.cancel(engine, sweep="study")
    assert jobs.retry(engine, sweep="study") == 7
    assert len(run_all(engine)) == 7
    assert check(engine) == []


def test_a_large_sweep_is_cancelled_and_retried_in_several_transactions(engine, monkeypatch):
    monkeypatch.setattr(xsweep.db.control, "AT_ONCE", 2)
    monkeypatch.setattr(xsweep.db.control, "TURN_S", 0)
    submit(engine, study())
    finish(engine, take(engine))
    before = states(engine)
    statements = []
    sa.event.listen(engine, "commit", statements.append)
    assert jobs.cancel(engine, sweep="study") == 7
    assert len(statements) == 1 + 4, "the sweep, then two jobs at a time"
    assert counts(engine) == {"done": 1, "cancelled": 7}, "and none is skipped"
    assert jobs.retry(engine, sweep="study") == 7
    assert states(engine) == before
    assert check(engine) == []


def test_skipped_jobs_are_retried_after_those_that_they_need_in_several_transactions(
    engine, monkeypatch
):
    monkeypatch.setattr(xsweep.db.control, "AT_ONCE", 1)
    monkeypatch.setattr(xsweep.db.control, "TURN_S", 0)
    submit(engine, study())
    jobs.cancel(engine, job="tokens")
    assert counts(engine)["skipped"] == 6
    assert jobs.retry(engine, sweep="study") == 8 - 1
    assert counts(engine) == {"ready": 2, "waiting": 6}


def test_a_retry_forgives_earlier_failures(engine):
    submit(engine, [new_job("train")])
    for expected in ("ready", "ready", "failed"):
        assert fail(engine, take(engine)) == expected
    assert jobs.retry(engine, job="train") == 1
    assert [fail(engine, take(engine)) for _ in range(3)] == ["ready", "ready", "failed"]
    assert check(engine) == []


def test_a_retry_can_be_limited_to_failure_classes(engine):
    submit(engine, [new_job("a"), new_job("b"), new_job("after b", "b")])
    fail(engine, take(engine), "NAN")  # b comes first: more depends on it
    fail(engine, take(engine), "CONFIG")
    assert jobs.retry(engine, sweep="study", failures=["OOM_GPU"]) == 0
    assert jobs.retry(engine, sweep="study", failures=["NAN"]) == 2
    assert sorted(states(engine).values()) == ["failed", "ready", "waiting"]


def test_a_job_with_another_broken_parent_stays_skipped(engine):
    submit(engine, [new_job("a"), new_job("b"), new_job("both", "a", "b"), new_job("end", "both")])
    a, b = take(engine), take(engine)
    fail(engine, a, "CONFIG")
    fail(engine, b, "DATA")
    assert jobs.retry(engine, job="a") == 1
    assert states(engine) == {"a": "ready", "b": "failed", "both": "skipped", "end": "skipped"}
    finish(engine, take(engine))
    assert jobs.retry(engine, job="b") == 3
    assert run_all(engine) == ["b", "both", "end"]


def test_retrying_a_skipped_job_retries_the_jobs_it_needs(engine):
    submit(engine, [new_job("a"), new_job("b", "a"), new_job("c", "b"), new_job("other")])
    fail(engine, take(engine), "CONFIG")
    assert jobs.retry(engine, job="c") == 3
    assert states(engine) == {"a": "ready", "b": "waiting", "c": "waiting", "other": "ready"}


def test_retrying_a_job_of_a_cancelled_sweep_makes_it_claimable(engine):
    submit(engine, [new_job("a"), new_job("b")])
    jobs.cancel(engine, sweep="study")
    jobs.retry(engine, job="b")
    assert run_all(engine) == ["b"]
    assert states(engine) == {"a": "cancelled", "b": "done"}


def test_done_jobs_are_never_retried_or_cancelled(engine):
    submit(engine, [new_job("train")])
    finish(engine, take(engine))
    assert jobs.retry(engine, job="train") == 0
    assert jobs.cancel(engine, job="train") == 0
    assert states(engine) == {"train": "done"}


def test_a_pause_does_not_stop_running_jobs(engine):
    submit(engine, study())
    claim = take(engine)
    jobs.pause(engine, "study")
    jobs.pause(engine, "study")
    assert jobs.claim(engine, owner="alice", limit=9, lease_s=60) == []
    assert jobs.renew(engine, [claim.lease], lease_s=60) == {claim.lease}
    assert finish(engine, claim)
    jobs.resume(engine, "study")
    assert len(run_all(engine)) == 7


def test_a_cancelled_sweep_is_neither_paused_nor_resumed(engine):
    submit(engine, [new_job("train")])
    jobs.cancel(engine, sweep="study")
    for verb in (jobs.pause, jobs.resume):
        with pytest.raises(ConfigError, match="is cancelled; `xsweep retry study` reopens it"):
            verb(engine, "study")


def test_a_cancelled_attempt_is_not_requeued_when_its_lease_runs_out(engine):
    submit(engine, [new_job("train")])
    claim = take(engine)
    expire(engine, claim)
    jobs.cancel(engine, job="train")
    assert jobs.expired(engine) == []
    assert not jobs.requeue_expired(engine, claim.lease)
    assert states(engine) == {"train": "cancelled"}


@pytest.mark.parametrize("verb", [jobs.cancel, jobs.retry])
def test_an_unknown_name_raises_an_error_with_the_nearest_name(engine, verb):
    submit(engine, study())
    with pytest.raises(ConfigError, match=r"no sweep 'stuyd': did you mean 'study'\?"):
        verb(engine, sweep="stuyd")
    with pytest.raises(ConfigError, match=r"no job 'trian s1': did you mean 'train s1'"):
        verb(engine, job="trian s1")
    with pytest.raises(ConfigError, match="name a sweep or a job"):
        verb(engine)


def test_dropping_a_sweep_keeps_results_and_the_jobs_of_other_sweeps(engine):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, study(seeds=[1, 2]), name="two")
    run_next = [take(engine) for _ in range(2)]
    for claim in run_next:
        finish(engine, claim)
    # `two` has 8 jobs: 2 done, 5 shared with `one`, and 3 of its own, which are not done
    expected = jobs.Dropped(total=8, shared=5, done=2, cancelled=3)
    assert jobs.drop(engine, "two", dry_run=True) == expected
    assert counts(engine, "two") == {"done": 2, "ready": 2, "waiting": 4}
    assert jobs.drop(engine, "two") == expected
    assert [sweep.name for sweep in summary(engine).sweeps] == ["one"]
    with pytest.raises(ConfigError, match="no sweep 'two'"):
        counts(engine, "two")
    assert counts(engine, "one") == {"done": 2, "ready": 1, "waiting": 2}
    assert check(engine) == []
    assert len(run_all(engine)) == 3
    assert check(engine) == []


def test_a_dropped_sweep_submitted_again_finds_its_results_and_runs_the_rest(engine):
    submit(engine, study(seeds=[1]))
    jobs.pause(engine, "study")
    jobs.resume(engine, "study")
    finish(engine, take(engine))
    running = take(engine)
    jobs.drop(engine, "study")
    assert not finish(engine, running)
    assert jobs.claim(engine, owner="alice", limit=9, lease_s=60) == []
    again = submit(engine, study(seeds=[1]))
    assert (again.new, again.done) == (0, 1)
    assert len(run_all(engine)) == 4
    assert check(engine) == []


def test_a_paused_sweep_that_was_dropped_is_active_when_submitted_again(engine):
    submit(engine, study(seeds=[1]))
    jobs.pause(engine, "study")
    jobs.drop(engine, "study")
    submit(engine, study(seeds=[1]))
    assert len(run_all(engine)) == 5


def test_a_redone_job_is_computed_again_with_all_that_depends_on_it(engine):
    submit(engine, study())
    run_all(engine)
    foreseen = jobs.redo(engine, "train s1", dry_run=True)
    assert foreseen.names == ["train s1", "evaluate s1 dl19", "evaluate s1 dl20"]
    assert counts(engine) == {"done": 8}
    assert jobs.redo(engine, "train s1") == foreseen
    assert counts(engine) == {"done": 5, "ready": 1, "waiting": 2}
    cells = load_cells(engine, "study")
    assert {cell.labels["seed"] for cell in cells if cell.state == "done"} == {2}
    assert check(engine) == []
    assert run_all(engine) == foreseen.names
    again = jobs.explain(engine, "evaluate s1 dl19")
    assert [attempt.outcome for attempt in again.attempts] == ["done", "done"]
    assert again.folder == "store/evaluate s1 dl19/2"
    assert check(engine) == []


def test_the_history_keeps_what_was_retired(engine):
    submit(engine, [new_job("first"), new_job("second", "first")])
    run_all(engine)
    jobs.redo(engine, "first")
    retired = [event for event in history(engine) if event.kind == "redone"]
    assert [(event.job_id, event.token) for event in retired] == [(1, 1), (2, 1)]
    assert retired[0].detail == {
        "folder": "store/first/1",
        "manifest_sha256": identity("first"),
    }


def test_a_running_job_ends_when_its_input_is_redone_and_a_late_result_is_refused(engine):
    submit(engine, [new_job("first"), new_job("second", "first")])
    finish(engine, take(engine))
    running = take(engine)
    assert begin(engine, running)
    jobs.redo(engine, "first")
    assert states(engine) == {"first": "ready", "second": "waiting"}
    assert jobs.renew(engine, [running.lease], lease_s=60) == set()
    assert not finish(engine, running)
    assert run_all(engine) == ["first", "second"]
    assert check(engine) == []


def test_a_redone_job_starts_from_no_earlier_attempt(engine):
    submit(engine, [new_job("train")])
    broken = take(engine)
    begin(engine, broken, folder="checkpoints/1")
    fail(engine, broken)
    resumed = take(engine)
    assert resumed.previous == ("checkpoints/1",)
    begin(engine, resumed, folder="checkpoints/2")
    finish(engine, resumed)
    jobs.redo(engine, "train")
    fresh = take(engine)
    assert fresh.previous == ()
    begin(engine, fresh, folder="checkpoints/3")
    assert [fail(engine, fresh), fail(engine, take(engine))] == ["ready", "ready"]
    assert take(engine).previous == ("checkpoints/3",)


def test_only_done_jobs_can_be_redone(engine):
    submit(engine, [new_job("first"), new_job("second", "first")])
    with pytest.raises(ConfigError, match="job 'second' is waiting, only a done one can be redone"):
        jobs.redo(engine, "second")
    fail(engine, take(engine), "CONFIG")
    with pytest.raises(ConfigError, match=r"'first' is failed.*: `xsweep retry --job 1` runs it"):
        jobs.redo(engine, "first", dry_run=True)


def test_a_job_of_a_cancelled_sweep_can_be_redone(engine):
    submit(engine, study(seeds=[1]))
    run_all(engine)
    jobs.cancel(engine, sweep="study")
    jobs.redo(engine, "train s1")
    assert len(run_all(engine)) == 3

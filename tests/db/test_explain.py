import re

import pytest
from job_table import begin, expire, fail, finish, identity, new_job, study, submit, take

from xsweep.db import jobs
from xsweep.db.explain import finished_folder
from xsweep.db.jobs import NewJob
from xsweep.errors import ConfigError


def find(engine, job) -> int:
    return jobs.explain(engine, job, compare=False).job_id


def why(engine, job) -> tuple[str, ...]:
    return jobs.explain(engine, job).why


def test_a_waiting_job_names_its_missing_parents(engine):
    submit(engine, study(seeds=[1]))
    finish(engine, take(engine))  # tokens
    explanation = jobs.explain(engine, "evaluate s1 dl19")
    assert explanation.why == (
        "waits for candidates: candidates (ready)",
        "waits for train s1: train s1 (ready)",
    )
    assert {parent.role: parent.state for parent in explanation.parents} == {
        "candidates": "ready",
        "train s1": "ready",
    }


def test_every_state_has_its_reason(engine):
    submit(engine, [new_job("a"), new_job("b", "a"), new_job("c"), new_job("d"), new_job("e")])
    submit(engine, [new_job("c")], name="other")
    fail(engine, take(engine), "CONFIG", reason="no such backbone")
    assert why(engine, "a") == (
        "failed for good: CONFIG: no such backbone",
        "attempt 1 failed: CONFIG: no such backbone",
    )
    assert why(engine, "b") == ("skipped: a failed: CONFIG",)
    assert why(engine, "c") == (
        "ready to be claimed; jobs with longer chains behind them go first",
        "one job for the sweeps study, other",
    )
    claim = take(engine)
    assert why(engine, claim.name)[0] == "attempt 1 runs on a node not yet known"
    fail(engine, claim, "INFRA", reason="no answer", retry_after_s=100)
    assert why(engine, claim.name)[:2] == (
        "tries again in 100 s",
        "attempt 1 failed: INFRA: no answer",
    )
    jobs.cancel(engine, job="e")
    assert why(engine, "e") == ("cancelled by request; `xsweep retry` reopens it",)
    done = take(engine)
    finish(engine, done, folder="store/d")
    assert why(engine, done.name) == ("has the accepted result of attempt 1: store/d",)


def test_a_job_of_a_paused_sweep_names_the_sweep(engine):
    submit(engine, [new_job("train")])
    jobs.pause(engine, "study")
    assert why(engine, "train") == ("ready, but its sweeps are not active: study is paused",)


def test_a_retried_job_lists_all_its_attempts(engine):
    submit(engine, [new_job("train")])
    claim = take(engine, "alice")
    expire(engine, claim)
    jobs.requeue_expired(engine, claim.lease)
    claim = take(engine, "bob")
    place = {"actor": "xsweep-1-2", "node": "gpu3", "folder": "store/2", "log": "logs/2"}
    begin(engine, claim, **place)
    explanation = jobs.explain(engine, "train")
    assert explanation.why == (
        "attempt 2 runs on gpu3",
        "attempt 1 expired: NODE: the lease of alice ran out",
    )
    first, second = explanation.attempts
    assert (first.outcome, second.outcome, second.log) == ("expired", None, "logs/2")


def test_the_nearest_done_job_shows_which_settings_differ(engine):
    def training(name, parent="tokens", **spec):
        job = new_job(name, parent)
        return type(job)(**(vars(job) | {"spec": {"seed": 1, "optimisation": {"lr": 1e-5}} | spec}))

    submit(engine, [new_job("tokens"), new_job("other"), training("done")])
    submit(engine, [training("far", seed=2, optimisation={"lr": 3e-5, "steps": 9})], name="two")
    for _ in range(4):
        finish(engine, take(engine))
    submit(engine, [training("near", seed=2)], name="three")
    nearest = jobs.explain(engine, "near").nearest_done
    assert (nearest.name, nearest.differences) == ("done", {"seed": (2, 1)})
    submit(engine, [training("moved", parent="other")], name="four")
    nearest = jobs.explain(engine, "moved").nearest_done
    assert nearest.name == "done"
    assert nearest.differences == {
        "inputs.other": (identity("other"), None),
        "inputs.tokens": (None, identity("tokens")),
    }


def test_jobs_are_found_by_id_identity_prefix_and_name(engine):
    submit(engine, study())
    id_ = find(engine, "train s1")
    whole = identity("train s1")
    assert [find(engine, text) for text in (str(id_), whole, whole[:8])] == [id_] * 3


def twin(name):
    return NewJob(**(vars(new_job(name)) | {"name": "train twin"}))


def message(engine, text) -> str:
    with pytest.raises(ConfigError) as caught:
        find(engine, text)
    return str(caught.value)


def test_an_ambiguous_name_lists_the_candidates_with_their_sweeps_and_ways_to_choose(engine):
    submit(engine, [twin("a"), twin("c")], name="demo")
    submit(engine, [twin("b")], name="quick")
    submit(engine, [twin("b")], name="third")
    a, c, b = (find(engine, identity(name)) for name in "acb")
    assert message(engine, "train twin") == (
        f"job 'train twin' is ambiguous: train twin (job {a} in demo), train twin (job {c} in "
        f"demo), train twin (job {b} in quick and third): name one by its number or by its sweep, "
        "'quick/train twin'"
    )
    assert find(engine, "quick/train twin") == find(engine, "third/train twin") == b
    assert message(engine, "demo/train twin").endswith("name one by its number")
    assert message(engine, "none/train twin").startswith("no job")
    with pytest.raises(ConfigError, match="a finished train job is needed"):
        finished_folder(engine, "train", "quick/twin")
    with pytest.raises(ConfigError, match=r"job 'twin' is ambiguous: .* its sweep, 'quick/twin'$"):
        finished_folder(engine, "train", "twin")


def test_a_name_means_a_job_of_a_sweep_before_those_that_were_dropped(engine):
    submit(engine, [twin("a")], name="old")
    submit(engine, [twin("c")], name="older")
    submit(engine, [twin("b")], name="new")
    old = find(engine, "old/train twin")
    jobs.drop(engine, "old")
    jobs.drop(engine, "older")
    assert find(engine, "train twin") == find(engine, "new/train twin") != old
    jobs.drop(engine, "new")
    assert f"job {old} in no sweep" in message(engine, "train twin")


def test_an_ambiguous_beginning_of_an_identity_lists_names(engine):
    first, second = new_job("a"), new_job("b")
    second = NewJob(**(vars(second) | {"identity": first.identity[:60] + "0" * 4}))
    submit(engine, [first, second])
    assert re.search(
        r"ambiguous: [ab] \(job \d in study\), [ab] \(job \d in study\): name one by its number$",
        message(engine, first.identity[:9]),
    )


@pytest.mark.parametrize("text", ["", "%", "'; DROP TABLE job", "9" * 40, "abc", "é", "0x1"])
def test_odd_names_find_nothing_and_are_harmless(engine, text):
    submit(engine, study())
    with pytest.raises(ConfigError, match="no job"):
        find(engine, text)
    with pytest.raises(ConfigError, match="no sweep"):
        jobs.pause(engine, text)


def test_an_empty_database_is_reported_as_such(engine):
    with pytest.raises(ConfigError, match="the database has none yet; submit a grid first"):
        jobs.explain(engine, "train")

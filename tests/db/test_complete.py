import math

import pytest
import sqlalchemy as sa
from job_table import (
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

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.events import history
from xsweep.db.results import load_cells
from xsweep.db.schema import RETRIES, Job, backoff_s, now_s
from xsweep.errors import DataError


def test_accepting_a_result_makes_children_ready_that_miss_no_other_parent(engine):
    submit(engine, study(seeds=[1]))
    assert states(engine)["train s1"] == "waiting"
    order = run_all(engine)
    assert order.index("train s1") > order.index("tokens")
    assert order.index("evaluate s1 dl19") > max(order.index("train s1"), order.index("candidates"))


def test_a_result_under_an_old_token_changes_nothing(engine):
    submit(engine, [new_job("train"), new_job("test", "train")])
    zombie = take(engine, "alice")
    expire(engine, zombie)
    jobs.requeue_expired(engine, zombie.lease)
    current = take(engine, "bob")
    before = states(engine)
    assert not finish(engine, zombie, folder="store/zombie")
    assert states(engine) == before
    assert fail(engine, zombie) is None
    assert not jobs.release(engine, zombie.lease, reason="late")
    assert states(engine) == before
    assert finish(engine, current, folder="store/current")
    assert not finish(engine, zombie, folder="store/zombie")
    assert take(engine).inputs == {"train": "store/current"}
    assert [event.detail["verb"] for event in history(engine) if event.kind == "refused"] == [
        "finish",
        "fail",
        "release",
        "finish",
    ]


def test_an_owner_whose_attempt_was_adopted_cannot_end_it(engine):
    submit(engine, [new_job("train")])
    claim = take(engine, "alice")
    adopted = jobs.adopt(engine, claim, owner="bob", lease_s=60)
    assert fail(engine, claim) is None
    assert not jobs.release(engine, claim.lease, reason="drain")
    assert not finish(engine, claim)
    assert finish(engine, adopted)


def test_of_several_results_those_whose_leases_hold_are_accepted(engine):
    submit(engine, [new_job("a"), new_job("b"), new_job("c"), new_job("both", "a", "b")])
    a, b, c = (take(engine) for _ in range(3))
    expire(engine, c)
    jobs.requeue_expired(engine, c.lease)
    results = [
        jobs.NewResult(
            lease=claim.lease,
            folder=claim.name,
            manifest_sha256=identity(claim.name),
            summary={},
            provenance={},
            scores={"AP": {"q1": 0.5}} if claim is b else None,
        )
        for claim in (c, b, a)
    ]
    accepted = {a.lease, b.lease}
    assert jobs.finish(engine, results) == accepted
    assert states(engine) == {"a": "done", "b": "done", "c": "ready", "both": "ready"}
    assert jobs.finish(engine, results) == accepted, "a retry"
    assert jobs.finish(engine, []) == set()
    kinds = [event.kind for event in history(engine)]
    assert (kinds.count("accepted"), kinds.count("refused")) == (2, 2)
    assert load_cells(engine, "study", kind="train")[1].means == {"AP": 0.5}
    assert check(engine) == []


def test_one_result_with_invalid_scores_refuses_all_of_the_call(engine):
    submit(engine, [new_job("a"), new_job("b")])
    seal = {"folder": "f", "manifest_sha256": identity("f"), "summary": {}, "provenance": {}}
    results = [
        jobs.NewResult(lease=take(engine).lease, **seal, scores={"AP": {"q1": value}})
        for value in (0.5, math.nan)
    ]
    with pytest.raises(DataError, match="AP of query q1 is nan"):
        jobs.finish(engine, results)
    assert set(states(engine).values()) == {"running"}


def test_a_retried_call_returns_what_the_lost_reply_said(engine):
    submit(engine, [new_job("a"), new_job("b"), new_job("c")])
    done, failed, released = (take(engine) for _ in range(3))
    assert [finish(engine, done) for _ in range(2)] == [True, True]
    assert not finish(engine, done, manifest_sha256=identity("another"))
    assert [fail(engine, failed, "CONFIG") for _ in range(2)] == ["failed", "failed"]
    assert [jobs.release(engine, released.lease, reason="drain") for _ in range(2)] == [
        True,
        True,
    ]
    kinds = [event.kind for event in history(engine)]
    assert (kinds.count("accepted"), kinds.count("failed"), kinds.count("released")) == (1, 1, 1)


def test_scores_are_read_back_bit_for_bit_with_their_mean(engine):
    submit(engine, [new_job("test", kind="evaluate"), new_job("open", kind="evaluate")])
    scores = {
        "nDCG@10": {"q10": 0.1, "q2": 1 / 3, "q1": 5e-324},
        "AP": {"q1": 1.0, "q2": 0.25, "q10": 0.25},
    }
    assert finish(engine, take(engine), scores=scores, query_set_name="dl19")
    cell, unfinished = load_cells(engine, "study")
    assert cell.query_ids == ("q1", "q10", "q2")
    assert cell.scores["nDCG@10"].tolist() == [5e-324, 0.1, 1 / 3]
    assert cell.means == {"AP": 0.5, "nDCG@10": math.fsum([0.1, 1 / 3, 5e-324]) / 3}
    assert (unfinished.state, unfinished.means, unfinished.scores) == ("ready", {}, {})
    (only,) = load_cells(engine, "study", measures=["AP"])[:1]
    assert list(only.scores) == ["AP"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"AP": {"q1": math.nan}}, "AP of query q1 is nan"),
        ({"AP": {"q1": math.inf}}, "AP of query q1 is inf"),
        ({"AP": {"q1": 1.0}, "RR": {"q2": 1.0}}, "every measure needs a value for every query"),
        ({"AP": {}}, "AP has 0 queries"),
    ],
)
def test_invalid_scores_are_refused(engine, scores, message):
    submit(engine, [new_job("test", kind="evaluate")])
    claim = take(engine)
    with pytest.raises(DataError, match=message):
        finish(engine, claim, scores=scores, query_set_name="dl19")
    assert states(engine) == {"test": "running"}


def test_numbers_that_are_not_finite_are_stored_as_null(engine):
    submit(engine, [new_job("test", kind="evaluate")])
    finish(engine, take(engine), summary={"loss": math.nan, "steps": [1, math.inf]})
    (cell,) = load_cells(engine, "study")
    assert cell.summary == {"loss": None, "steps": [1, None]}


@pytest.mark.parametrize(("failure", "allowed"), RETRIES.items())
def test_every_failure_class_has_its_number_of_retries(engine, failure, allowed):
    submit(engine, [new_job("train"), new_job("test", "train")])
    for _ in range(12 if allowed is None else allowed):
        assert fail(engine, take(engine), failure) == "ready"
    if allowed is None:
        assert finish(engine, take(engine))
    else:
        assert fail(engine, take(engine), failure) == "failed"
        assert states(engine) == {"train": "failed", "test": "skipped"}


def test_failure_classes_have_separate_budgets_and_a_release_is_free(engine):
    submit(engine, [new_job("train")])
    for failure in ("UNKNOWN", "INFRA", "UNKNOWN", "PREEMPTED", "HANG"):
        assert fail(engine, take(engine), failure) == "ready"
        jobs.release(engine, take(engine).lease, reason="drain")
    assert fail(engine, take(engine), "UNKNOWN") == "failed"


def test_an_unlisted_failure_class_counts_as_unknown(engine):
    submit(engine, [new_job("train")])
    assert [fail(engine, take(engine), "GREMLINS") for _ in range(3)] == [
        "ready",
        "ready",
        "failed",
    ]


def test_a_failed_job_skips_exactly_the_jobs_that_need_it(engine):
    submit(engine, study())
    names = {"tokens": "CONFIG"}
    while claims := jobs.claim(engine, owner="alice", limit=1, lease_s=60):
        (claim,) = claims
        if claim.name in names:
            fail(engine, claim, names[claim.name])
        else:
            finish(engine, claim)
    assert states(engine) == {
        "tokens": "failed",
        "candidates": "done",
        "train s1": "skipped",
        "train s2": "skipped",
        "evaluate s1 dl19": "skipped",
        "evaluate s1 dl20": "skipped",
        "evaluate s2 dl19": "skipped",
        "evaluate s2 dl20": "skipped",
    }


def test_a_reason_with_any_characters_and_length_is_stored_readably(engine):
    submit(engine, [new_job("train")])
    fail(engine, take(engine), "CONFIG", reason="bad\0byte \ud800 é " + "x" * 20_000)
    (attempt,) = jobs.explain(engine, "train").attempts
    assert attempt.reason.startswith("badbyte \\ud800 é xxx")
    assert len(attempt.reason) == 10_000


def test_waits_double_up_to_their_limit_with_jitter_below_it():
    for failures, longest_s in [(1, 5), (2, 10), (3, 20), (20, 600)]:
        waits = [backoff_s("INFRA", failures) for _ in range(200)]
        assert longest_s / 2 <= min(waits) < max(waits) <= longest_s
    assert backoff_s("OOM_GPU", 3) == 0
    assert backoff_s("PREEMPTED", 5000) == 0


def test_a_job_on_a_full_node_waits_longer_each_time_and_never_fails(engine):
    submit(engine, [new_job("train")])
    waits = []
    for _ in range(12):
        claim = take(engine)
        assert jobs.fail(engine, claim.lease, failure="NODE_FULL", reason="full") == "ready"
        with engine.begin() as connection:
            waits.append(connection.scalar(sa.select(Job.retry_at - now_s())))
            connection.execute(sa.update(Job).values(retry_at=now_s()))
    assert 2 < waits[0] <= 5
    assert 290 < waits[-1] <= 600


def test_the_cost_of_accepting_a_parent_grows_linearly_with_its_children(tmp_path):
    """SQLite counts its own steps: four times the children take four times the steps."""

    def steps(children: int) -> int:
        engine = connect(f"sqlite:///{tmp_path}/{children}.db", create=True)
        submit(engine, [new_job("parent"), *(new_job(f"c {n}", "parent") for n in range(children))])
        counted: list[None] = []
        claim = take(engine)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            raw.set_progress_handler(lambda: counted.append(None), 100)
        assert finish(engine, claim)
        engine.dispose()
        return len(counted)

    assert steps(1_200) < 5 * steps(300)

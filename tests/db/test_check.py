import pytest
from job_table import expire, fail, finish, new_job, run_all, study, submit, take
from sqlalchemy import Engine, text

from xsweep.db import jobs
from xsweep.db.check import INVARIANTS, check

GUARDS = "SELECT name FROM sqlite_master WHERE type = 'trigger'"


@pytest.fixture
def used(engine: Engine) -> Engine:
    """A database with nearly every kind of event: job 1 is done, the last one runs."""
    submit(engine, [new_job("first"), *study(seeds=[1])])
    finish(engine, take(engine))
    fail(engine, take(engine), "INFRA")
    expire(engine, claim := take(engine))
    jobs.requeue_expired(engine, claim.lease)
    jobs.release(engine, take(engine).lease, reason="drain")
    jobs.cancel(engine, job="evaluate s1 dl19")
    jobs.retry(engine, job="evaluate s1 dl19")
    while claims := jobs.claim(engine, owner="alice", limit=9, lease_s=60):
        for claim in claims:
            scores = {"AP": {"q1": 0.5, "q2": 1.0}} if claim.kind == "evaluate" else None
            finish(engine, claim, scores=scores, query_set_name="dl19")
    submit(engine, [new_job("running")], name="more")
    take(engine)
    return engine


def plant(engine: Engine, *statements: str) -> None:
    """Damage the database without its triggers and constraints."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("ALTER TABLE result DROP CONSTRAINT result_pk CASCADE"))
            for name in ("job_parents_ck", "job_failure_ck"):
                connection.execute(text(f"ALTER TABLE job DROP CONSTRAINT {name}"))
            connection.execute(text("DROP INDEX attempt_live_ix"))
        else:
            for (name,) in connection.execute(text(GUARDS)).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("DROP INDEX attempt_live_ix"))
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        for statement in statements:
            connection.execute(text(statement))


def happened(kind: str, job_id: str, token: int, detail: str) -> str:
    detail = detail.replace(":", r"\:")
    columns = "at, kind, job_id, token, owner, detail"
    values = f"0, '{kind}', {job_id}, {token}, 'x', '{detail}'"
    return f"INSERT INTO event ({columns}) VALUES ({values})"


SEALS = '{"manifest_sha256": "m", "scores_sha256": null}'
LAST = "(SELECT max(id) FROM job)"
EVALUATION = "(SELECT min(job_id) FROM score)"
PARENT = "(SELECT min(parent_id) FROM edge)"
WAITS = f"(SELECT min(child_id) FROM edge WHERE parent_id = {PARENT})"

PLANTED = {
    "a second acceptance": ("I1", [happened("accepted", "1", 1, SEALS)]),
    "a result that was not accepted": (
        "I1",
        [f"INSERT INTO result VALUES ({LAST}, 1, 'f', 'm', '{{}}', '{{}}', 0)"],
    ),
    "a result swapped": ("I1", ["UPDATE result SET manifest_sha256 = 'other' WHERE job_id = 1"]),
    "a result lost": ("I1", ["DELETE FROM result WHERE job_id = 1"]),
    "a done job undone": ("I1", ["UPDATE job SET state = 'ready' WHERE id = 1"]),
    "an acceptance of an old attempt": ("I1", [happened("accepted", LAST, 0, SEALS)]),
    "a claim of a running job": ("I2", [happened("claimed", LAST, 2, "{}")]),
    "two live attempts": (
        "I2",
        [
            "INSERT INTO attempt (job_id, token, owner, claimed_at, lease_until)"
            f" VALUES ({LAST}, 2, 'x', 0, 9e9)"
        ],
    ),
    "a token used again": ("I3", [happened("claimed", "1", 1, "{}")]),
    "a token set back": ("I3", ["UPDATE job SET token = 0 WHERE id = 1"]),
    "an attempt removed": ("I3", ["DELETE FROM attempt WHERE outcome = 'released'"]),
    "a run before its parents": ("I4", [f"INSERT INTO edge VALUES (1, 'r', {LAST})"]),
    "a lost child": (
        "I5",
        [f"UPDATE job SET state = 'waiting', missing_parents = 1 WHERE id = {WAITS}"],
    ),
    "a running job without an attempt": ("I5", ["UPDATE job SET state = 'running' WHERE id = 1"]),
    "a child of a failed job that waits": (
        "I5",
        [
            f"UPDATE job SET state = 'failed' WHERE id = {PARENT}",
            f"UPDATE job SET state = 'waiting' WHERE id = {WAITS}",
        ],
    ),
    "a job skipped needlessly": (
        "I5",
        [f"UPDATE job SET state = 'skipped' WHERE id = {LAST}"],
    ),
    "a retry too many": (
        "I6",
        [
            happened("failed", LAST, 1, '{"failure": "NAN", "allowed": 0, "next": "ready"}'),
        ],
    ),
    "a job that was not submitted": (
        "I7",
        [
            "INSERT INTO job (identity, kind, name, state, missing_parents, priority, critical_s,"
            " token, forgiven_token, created_at)"
            f" VALUES ('{'f' * 64}', 'train', 'stray', 'ready', 0, 0, 1, 0, 0, 0)"
        ],
    ),
    "a member that was not submitted": (
        "I7",
        [f"INSERT INTO sweep_job SELECT 1, {LAST}, '{{}}'"],
    ),
    "a wrong count": ("I7", ["UPDATE tally SET jobs = jobs + 1"]),
    "counts of an unknown sweep": (
        "I7",
        ["INSERT INTO tally (sweep_id, kind, state, jobs, cost_s) VALUES (9, 'x', 'done', 1, 0)"],
    ),
    "a score of another measure": (
        "I8",
        [f"UPDATE score SET measure = 'P@1' WHERE job_id = {EVALUATION}"],
    ),
    "a mean changed": ("I8", [f"UPDATE score SET mean = 0.8 WHERE job_id = {EVALUATION}"]),
    "scores removed": ("I8", [f"DELETE FROM score WHERE job_id = {EVALUATION}"]),
    "queries renamed": ("I8", ["""UPDATE query_set SET query_ids = '["q1", "q3"]'"""]),
}


def test_a_database_with_a_full_history_has_no_violations(used):
    assert check(used) == []
    run_all(used)
    assert check(used) == []


def test_an_empty_database_has_no_violations(engine):
    assert check(engine) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(used, name):
    invariant, statements = PLANTED[name]
    plant(used, *statements)
    found = check(used)
    assert invariant in {violation.invariant for violation in found}, found
    assert all(violation.message for violation in found)


def test_a_changed_byte_of_a_score_is_found(used):
    change = "UPDATE score SET packed = :packed WHERE job_id = (SELECT max(job_id) FROM score)"
    plant(used)
    with used.begin() as connection:
        if used.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(change), {"packed": b"\0" * 16})
    assert {violation.invariant for violation in check(used)} == {"I8"}


def test_every_invariant_has_a_planted_violation():
    assert {invariant for invariant, _ in PLANTED.values()} == set(INVARIANTS)

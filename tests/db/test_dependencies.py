from job_table import fail, new_job, states, submit, take

from xsweep.db.dependencies import reopen
from xsweep.db.explain import find_job


def test_a_job_is_reopened_only_together_with_every_broken_one_that_it_needs(engine):
    submit(engine, [new_job("a"), new_job("b", "a"), new_job("c", "b"), new_job("d", "c")])
    fail(engine, take(engine), "CONFIG")
    with engine.begin() as connection:
        a, b, c, d = (find_job(connection, name) for name in "abcd")
        assert reopen(connection, [b, c, d]) == set()
        assert reopen(connection, [a, b, d]) == {a, b}
    assert states(engine) == {"a": "ready", "b": "waiting", "c": "skipped", "d": "skipped"}

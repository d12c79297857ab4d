"""A limit on the jobs of a kind, on a real cluster."""

import pytest
from tiny import write_study

from xsweep.db import jobs, status
from xsweep.db.engine import connect


def _intervals(engine, kind: str) -> list[tuple[float, float]]:
    """From start to end of each job's accepted attempt, in their order."""
    found = [jobs.explain(engine, job.job_id) for job in status.list_jobs(engine, kind=kind)]
    return sorted((each.attempts[-1].started_at, each.attempts[-1].ended_at) for each in found)


@pytest.mark.slow(20)
def test_no_more_jobs_of_a_kind_run_at_once_than_its_limit(workplace):
    write_study(workplace.folder, steps=60)
    workplace.environment |= {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "XSWEEP_LIMITS": "train=1"}
    workplace.xsweep("submit", "tiny.yaml", "--no-start")
    workplace.xsweep("run")
    engine = connect(f"sqlite:///{workplace.home}/xsweep.db")
    trainings = _intervals(engine, "train")
    engine.dispose()
    assert len(trainings) == 2
    (_, first_ended), (second_started, _) = trainings
    assert second_started >= first_ended

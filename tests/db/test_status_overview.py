import pytest
from job_table import finish, study, submit, take

from xsweep.db import jobs
from xsweep.db.status import overview
from xsweep.errors import ConfigError


def test_an_overview_has_states_labels_progress_and_means_of_one_sweep(engine):
    submit(engine, study(seeds=[1]))
    submit(engine, study(seeds=[2]), name="another")
    for _ in range(3):
        finish(engine, take(engine))  # tokens, candidates, and one of the trainings
    scores = {"nDCG@10": {"a": 0.25, "b": 0.75}, "RR@10": {"a": 1.0, "b": 0.5}}
    evaluated = take(engine, kinds=["evaluate"])
    finish(engine, evaluated, scores=scores)
    runs = take(engine, kinds=["evaluate"])
    progress = {runs.lease: {"done": 1, "total": 4}}
    jobs.renew(engine, [runs.lease], lease_s=60, progress=progress)
    seed = int(evaluated.name.split()[1][1:])
    name = {1: "study", 2: "another"}[seed]
    found = {place.job_id: place for place in overview(engine, name)}
    assert len(found) == 5
    assert found[evaluated.job_id].means == {"nDCG@10": 0.5, "RR@10": 0.75}
    assert found[evaluated.job_id].labels["seed"] == seed
    assert (found[runs.job_id].state, found[runs.job_id].progress) == (
        "running",
        {"done": 1, "total": 4},
    )
    with pytest.raises(ConfigError, match="no sweep 'none'"):
        overview(engine, "none")

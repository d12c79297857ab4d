"""What is read of a sweep for an archive, for forecasts, and for the care of the store."""

from job_table import begin, fail, finish, identity, study, submit, take
from sqlalchemy import Engine

from xsweep.db.results import done_identities, load_durations, load_folders
from xsweep.db.transfer import load_sweep


def test_a_sweep_is_read_as_it_was_submitted_with_the_results_of_what_is_done(
    engine: Engine,
) -> None:
    grid = study()
    submit(engine, grid)
    claim = take(engine)
    finish(engine, claim, folder="here")
    stored = load_sweep(engine, "study")
    assert (stored.name, stored.grid) == ("study", "name: study")
    given = {(job.identity, job.kind, job.name, str(job.labels)) for job in grid}
    assert {(job.identity, job.kind, job.name, str(job.labels)) for job in stored.jobs} == given
    by_identity = {job.identity: job for job in stored.jobs}
    assert all(by_identity[job.identity].parents == job.parents for job in grid)
    assert list(stored.results) == [claim.identity]
    assert stored.results[claim.identity].folder == "here"
    seen: set[str] = set()
    for job in stored.jobs:
        assert set(job.parents.values()) <= seen
        seen.add(job.identity)


def test_durations_are_those_of_accepted_attempts_with_their_parents_specs(engine: Engine) -> None:
    submit(engine, study(seeds=[1]))
    for _ in range(2):
        finish(engine, take(engine, kinds=["prepare"]))
    fail(engine, take(engine), failure="HANG")
    finish(engine, take(engine), provenance={"hardware": {"gpus": ["X"]}})
    found = load_durations(engine)
    assert sorted(done.kind for done in found) == ["prepare", "prepare", "train"]
    (train,) = (done for done in found if done.kind == "train")
    assert train.parents == {"tokens": ("prepare", {"name": "tokens"})}
    assert (train.hardware, train.seconds >= 0) == ({"gpus": ["X"]}, True)


def test_folders_tell_what_became_of_each_attempt(engine: Engine) -> None:
    submit(engine, [study()[0]])
    claim = take(engine)
    begin(engine, claim, folder="first")
    assert [(each.folder, each.live) for each in load_folders(engine)] == [("first", True)]
    fail(engine, claim, failure="HANG")
    claim = take(engine)
    begin(engine, claim, folder="second")
    finish(engine, claim, folder="second")
    told = [(each.folder, each.live, each.accepted, each.job_done) for each in load_folders(engine)]
    assert told == [("first", False, False, True), ("second", False, True, True)]


def test_identities_are_found_by_job_and_told_when_done(engine: Engine) -> None:
    submit(engine, study())
    finish(engine, claim := take(engine))
    every = [identity(name) for name in ("tokens", "candidates", "train s1")]
    assert done_identities(engine, every) == {claim.identity}

"""Exports hold a sweep as submitted; imports accept results once and overwrite none."""

import pytest
from job_table import finish, identity, states, study, submit, take
from sqlalchemy import Engine

from xsweep.db.check import check
from xsweep.db.results import load_cells, load_costs
from xsweep.db.transfer import ImportCount, StoredResult, import_results, load_sweep


def result(name: str, value: float | None = None, seconds: float = 30.0) -> StoredResult:
    return StoredResult(
        folder=f"imported/{name}",
        manifest_sha256=identity(f"files of {name}"),
        summary={"steps": 10},
        provenance={"host": "elsewhere"},
        seconds=seconds,
        scores={} if value is None else {"nDCG@10": {"q1": value, "q2": 0.0}},
    )


def take_over(engine: Engine, grid: list, names: dict[str, float | None]) -> ImportCount:
    results = {identity(name): result(name, value) for name, value in names.items()}
    return import_results(
        engine, name="study", grid="name: study", jobs=grid, results=results, owner="import of x"
    )


ALL_OF_S1 = {
    "tokens": None,
    "candidates": None,
    "train s1": None,
    "evaluate s1 dl19": 0.5,
    "evaluate s1 dl20": 1.0,
}


def test_a_sweep_is_exported_as_submitted_with_its_results(engine: Engine) -> None:
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


def test_results_are_accepted_parents_first_and_the_rest_waits(engine: Engine) -> None:
    found = take_over(engine, study(), ALL_OF_S1)
    assert found == ImportCount(accepted=5, known=0, refused=0)
    after = states(engine)
    assert {after[name] for name in ALL_OF_S1} == {"done"}
    assert after["train s2"] == "ready"
    assert after["evaluate s2 dl19"] == "waiting"
    means = {cell.name: cell.means for cell in load_cells(engine, "study") if cell.means}
    assert means == {
        "evaluate s1 dl19": {"nDCG@10": 0.25},
        "evaluate s1 dl20": {"nDCG@10": 0.5},
    }
    assert check(engine) == []


def test_an_import_keeps_the_durations_of_results(engine: Engine) -> None:
    take_over(engine, study(), ALL_OF_S1)
    assert [cost.seconds for cost in load_costs(engine, "study")] == [
        pytest.approx(30, abs=1e-3)
    ] * 5


def test_an_import_changes_neither_done_nor_running_jobs(engine: Engine) -> None:
    submit(engine, study())
    claim = take(engine, kinds=["prepare"])
    found = take_over(engine, study(), ALL_OF_S1)
    # One preparation runs here, and the training or its evaluations wait for it.
    assert found.accepted + found.refused == 5
    assert found.refused >= 3
    assert states(engine)[claim.name] == "running"
    assert check(engine) == []
    again = take_over(engine, study(), ALL_OF_S1)
    assert again == ImportCount(accepted=0, known=found.accepted, refused=found.refused)
    assert check(engine) == []

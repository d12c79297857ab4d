"""Results of another database: accepted once, in order, and never over what is here."""

from job_table import identity, states, study, submit, take
from sqlalchemy import Engine

from xsweep.db.check import check
from xsweep.db.results import load_cells, load_costs
from xsweep.db.transfer import ImportCount, StoredResult, import_results


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


def test_the_time_that_a_job_took_elsewhere_is_kept(engine: Engine) -> None:
    take_over(engine, study(), ALL_OF_S1)
    assert {round(cost.seconds) for cost in load_costs(engine, "study")} == {30}


def test_what_is_done_here_stays_and_what_runs_here_is_left_alone(engine: Engine) -> None:
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

"""A search on Ray: trials end early, a crash redoes none, the winner's settings are used."""

import json
from pathlib import Path

import pytest
from tiny import write_collection, write_study

from xsweep.db import events, jobs, status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.status import overview

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(600)]

STEPS = 80
SEARCH = f"""
search:
  - match: {{objective: infonce}}
    space: {{lr: {{choice: [1e-3, 3e-3, 1e-5, 0.9]}}}}
    asha: {{grace_steps: 20, reduction: 2}}
    training: {{steps: {STEPS}}}
validation: {{collection: tiny-validation, every_steps: 20, measure: nDCG@10, depth: 5}}
"""
OWN = (
    "  tiny-validation: {documents: v/documents.tsv, queries: v/queries.tsv, qrels: v/qrels.txt}\n"
)


@pytest.fixture
def study(guest):
    grid = write_study(guest.folder, steps=STEPS)
    write_collection(guest.folder / "v", seed=5)
    text = grid.read_text().replace("backbones:", f"{OWN}backbones:", 1)
    grid.write_text(text.replace("evaluation:", f"{SEARCH}evaluation:", 1))
    guest.command("submit", "tiny.yaml", "--no-start")
    return guest


@pytest.fixture
def engine(study):
    engine = connect(f"sqlite:///{study.home}/xsweep.db")
    yield engine
    engine.dispose()


def trials(engine) -> dict[int, int]:
    """Attempts of the trials by job."""
    rows = {row.job_id: row for row in status.list_jobs(engine, kind="train")}
    return {
        place.job_id: rows[place.job_id].token
        for place in overview(engine, "tiny")
        if "trial" in place.labels
    }


def done(engine) -> set[int]:
    return {row.job_id for row in status.list_jobs(engine, state="done", kind="train")}


def test_a_search_that_is_killed_continues_and_its_winner_is_used(study, engine, end_workers):
    controller = study.start("run")
    for line in controller.stdout:
        if "done      trial" in line:
            break
    controller.kill()
    controller.communicate()
    end_workers()
    finished = done(engine) & trials(engine).keys()
    assert finished

    output, _ = study.start("run").communicate(timeout=500)
    assert "done      search" in output
    assert check(engine) == []
    assert {job: trials(engine)[job] for job in finished} == dict.fromkeys(finished, 1)

    rungs = [event for event in events.history(engine, latest=10_000) if event.kind == "rung"]
    per_trial = [event.job_id for event in rungs]
    assert set(per_trial) <= trials(engine).keys()
    # rungs at 20 and 40 of 80 steps, each once for a trial
    assert max(map(per_trial.count, set(per_trial))) <= 2

    search = jobs.explain(engine, "search Tiny infonce lists lr")
    folder = Path(study.home, "store", str(search.folder))
    rows = json.loads((folder / "trials.json").read_text())
    assert len(rows) == 4
    winner = json.loads((folder / "winner.json").read_text())
    measured = [row for row in rows if row["validation"] is not None]
    assert winner["validation"] == max(row["validation"] for row in measured)

    run = jobs.explain(engine, "train Tiny infonce lists s1")
    summary = json.loads(Path(study.home, "store", str(run.folder), "summary.json").read_text())
    assert summary["search"]["settings"] == winner["settings"]
    assert [parent.name for parent in run.parents if parent.role == "search"] == [search.name]
    assert "infonce" in study.command("report", "tiny")

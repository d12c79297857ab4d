"""The outcome of an attempt, and the name of its task."""

from pathlib import Path

import pytest

from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.runtime.attempt import decide, title
from xsweep.orchestrator.settings import Settings

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
KINDS = {"prepare": 22 + 13 + 1, "train": 1, "evaluate": 22}


def test_a_task_is_named_after_its_collection_and_not_after_its_job() -> None:
    spec = {"collection": {"name": "scifact", "source": "ir_datasets"}}
    assert title("evaluate", spec) == "evaluate scifact"
    assert title("prepare", {"seconds": 1}) == "prepare"


def test_the_whole_study_has_one_name_per_kind_and_collection(tmp_path: Path) -> None:
    """Candidates: 22 test and 13 validation collections; tokens and trainings share one name."""
    settings = Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=tmp_path
    )
    jobs = plan_grid(SWEEPS / "full_grid.yaml", settings).jobs
    names = {kind: {title(j.kind, j.spec) for j in jobs if j.kind == kind} for kind in KINDS}
    assert {kind: len(of) for kind, of in names.items()} == KINDS


OUT_OF_MEMORY = {"state": "failed", "failure": "OOM_GPU", "reason": "out of memory"}
LOST_PEER = {"state": "failed", "failure": "NODE", "reason": "Connection closed by peer"}
UNKNOWN = {"state": "failed", "failure": "UNKNOWN", "reason": "RuntimeError"}
FINISHED = {"state": "finished", "failure": None, "reason": None}


@pytest.mark.parametrize(
    ("outcomes", "failure", "rank"),
    [
        ({0: LOST_PEER, 1: OUT_OF_MEMORY}, "OOM_GPU", 1),  # rank 0 only lost its peer
        ({0: UNKNOWN, 1: LOST_PEER}, "NODE", 1),  # a peer is gone: no program is wrong
        ({1: FINISHED, 0: UNKNOWN}, "UNKNOWN", 0),
    ],
)
def test_the_failure_of_a_gang_is_the_one_with_a_cause_of_its_own(outcomes, failure, rank):
    outcome = decide(outcomes, 2)
    assert outcome["failure"] == failure
    assert outcome["reason"].startswith(f"rank {rank} of 2: ")


def test_a_gang_has_finished_when_its_first_rank_has():
    assert decide({0: FINISHED}, 3) == FINISHED

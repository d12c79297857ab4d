"""What workers are told of a job."""

from pathlib import Path

from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.runtime.attempt import title
from xsweep.orchestrator.settings import Settings

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
KINDS = {"prepare": 22 + 13 + 1, "train": 1, "evaluate": 22}


def test_a_task_is_named_after_its_collection_and_not_after_its_job() -> None:
    spec = {"collection": {"name": "scifact", "source": "ir_datasets"}}
    assert title("evaluate", spec) == "evaluate scifact"
    assert title("prepare", {"seconds": 1}) == "prepare"


def test_the_whole_study_has_one_name_per_kind_and_collection(tmp_path: Path) -> None:
    """Candidates are made for 22 collections that test and 13 that validate, tokens have none of
    their own, and all trainings read MS MARCO."""
    settings = Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=tmp_path
    )
    jobs = plan_grid(SWEEPS / "full_grid.yaml", settings).jobs
    names = {kind: {title(j.kind, j.spec) for j in jobs if j.kind == kind} for kind in KINDS}
    assert {kind: len(of) for kind, of in names.items()} == KINDS

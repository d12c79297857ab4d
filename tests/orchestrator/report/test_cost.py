import pytest
from reports import make_report

from xsweep.db.results import JobCost
from xsweep.orchestrator.report.cost import cost_section

CELL = {"backbone": "L6", "objective": "infonce", "teacher": "lists"}


def cost(kind, seconds, lost_s=0.0, gpus=0.0, cpus=1.0, **labels):
    return JobCost(
        job_id=0,
        kind=kind,
        labels=labels,
        gpus=gpus,
        cpus=cpus,
        seconds=seconds,
        lost_s=lost_s,
    )


@pytest.fixture
def report(make_cell):
    """BM25 0.3; the run 0.5 over two seeds."""
    return make_report(
        [
            make_cell(0, system="first_stage", AP=[0.2, 0.4]),
            make_cell(1, seed=1, AP=[0.4, 0.5]),
            make_cell(2, seed=2, AP=[0.6, 0.5]),
        ],
        measures=["AP"],
    )


def test_hours_and_gain_computed_by_hand(report):
    section = cost_section(
        report,
        [
            cost("prepare", 999),
            cost("train", 7200, lost_s=1800, gpus=1, seed=1, **CELL),
            cost("train", 3600, gpus=2, seed=2, **CELL),
            cost("evaluate", 720, gpus=0.5, seed=1, **CELL),
            cost("evaluate", 720, gpus=0.5, seed=2, **CELL),
            cost("train", 3600, gpus=1, seed=1, **(CELL | {"backbone": "other sweep's"})),
        ],
    )
    # trainings of 2 h on one GPU and 1 h on two: 2 GPU hours each; evaluations 0.2 h on half a GPU
    assert section.lines == [("L6 infonce", "2", "90 min", "2", "0.1", "0.5", "+0.200", "+0.100")]
    assert section.heads[3] == "GPU hours of a training"
    assert "In total 4.2 GPU hours, and 0.5 lost." in section.note


def test_without_gpus_core_hours_are_counted(report):
    section = cost_section(report, [cost("train", 90, cpus=2, seed=1, **CELL)])
    assert section.lines[0][2:4] == ("90 s", "0.05")
    assert section.heads[3] == "core hours of a training"


def test_only_the_chosen_seeds_are_counted(make_cell):
    cells = [make_cell(0, seed=1, AP=[0.4, 0.5])]
    report = make_report(cells, measures=["AP"], baselines=[])
    jobs = [cost("train", 3600, seed=seed, **CELL) for seed in (1, 2)]
    (line,) = cost_section(report, jobs).lines
    assert line[1:] == ("1", "60 min", "1", "0", "0", "–", "–")

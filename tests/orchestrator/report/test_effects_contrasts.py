import numpy as np
import pytest
from reports import make_report
from scipy import stats

from xsweep.orchestrator.report.effects import (
    complete_runs,
    contrasts,
    contrasts_section,
    wins_section,
)
from xsweep.orchestrator.report.table import Row


def rows(*systems):
    return [Row("run", *system.split()) for system in systems]


def test_objectives_are_compared_with_equal_teachers_and_teachers_with_equal_objectives():
    grid = rows("A bce pairs", "A bce lists", "A infonce lists", "B bce pairs", "B infonce lists")
    found = [(each.choice, each.better, each.worse, each.pairs) for each in contrasts(grid)]
    assert found == [
        ("backbone", "B", "A", ((3, 0), (4, 2))),
        # B has no two objectives with the same teacher
        ("objective", "infonce", "bce", ((2, 1),)),
        ("teacher", "lists", "pairs", ((1, 0),)),
    ]


def test_backbones_are_compared_in_the_order_of_the_grid_and_end_to_end():
    grid = rows("L3 bce t", "L6 bce t", "L12 bce t")
    named = [(each.better, each.worse) for each in contrasts(grid)]
    assert named == [("L6", "L3"), ("L12", "L6"), ("L12", "L3")]


@pytest.fixture(scope="module")
def confounded(make_cell):
    """infonce has better data than hinge; at equal data they differ only by 0.02."""
    generator = np.random.default_rng(3)
    cells = []
    for backbone, base in (("L3", 0.2), ("L6", 0.3)):
        for objective, teacher, gain in (
            ("hinge", "bm25", 0.0),
            ("hinge", "colbert", 0.20),
            ("infonce", "colbert", 0.22),
        ):
            scores = base + gain + generator.normal(0, 0.01, 50)
            labels = {"backbone": backbone, "objective": objective, "teacher": teacher}
            cells.append(make_cell(len(cells), AP=scores, **labels))
    return make_report(cells, measures=["AP"], baselines=[])


def test_loss_and_negatives_are_not_confounded(confounded):
    (data,) = complete_runs(confounded)
    section = contrasts_section(confounded, data)
    lines = {line[:2]: line for line in section.lines}
    by = {
        (row.model, row.objective, row.teacher): scores
        for row, scores in zip(data.rows, data.scores[0], strict=True)
    }
    difference = np.mean(
        [by[b, "infonce", "colbert"] - by[b, "hinge", "colbert"] for b in ("L3", "L6")], axis=0
    )
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    line = lines["objective", "infonce over hinge"]
    assert line[2:] == ("2", f"+{difference.mean():.3f}", f"+{low:.3f} to +{high:.3f}")
    assert difference.mean() == pytest.approx(0.02, abs=0.005)
    assert float(lines["teacher", "colbert over bm25"][3]) == pytest.approx(0.2, abs=0.005)
    assert float(lines["backbone", "L6 over L3"][3]) == pytest.approx(0.1, abs=0.005)
    assert "No two objectives share a teacher" not in section.note


def test_the_note_mentions_that_no_two_objectives_share_a_teacher(small_sweep):
    report = make_report(small_sweep)
    (data,) = complete_runs(report)
    assert "No two objectives share a teacher" in contrasts_section(report, data).note


def test_wins_are_tested_as_one_family(confounded):
    (data,) = complete_runs(confounded)
    section = wins_section(confounded, data)
    # two backbones with three pairs of systems each
    assert "over 6 pairs" in section.note
    lines = {line[0]: dict(zip(section.heads, line, strict=True)) for line in section.lines}
    assert lines["infonce (colbert)"]["hinge (bm25)"] == "2/2 (2)"
    assert lines["hinge (bm25)"]["infonce (colbert)"] == "0/2 (0)"


def test_the_wins_of_many_systems_have_numbered_columns(confounded, monkeypatch):
    monkeypatch.setattr("xsweep.orchestrator.report.effects.MAX_NAMED_COLUMNS", 2)
    (data,) = complete_runs(confounded)
    section = wins_section(confounded, data)
    names = [line[0] for line in section.lines]
    assert section.heads == ("", "1", "2", "3")
    assert [name.partition(" ")[0] for name in names] == ["1", "2", "3"]
    place = next(name for name in names if name.endswith("hinge (bm25)")).partition(" ")[0]
    (line,) = [line for line in section.lines if line[0].endswith("infonce (colbert)")]
    assert line[int(place)] == "2/2 (2)"

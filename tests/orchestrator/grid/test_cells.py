"""The cross product, the cells that are skipped, and the settings that win."""

from pathlib import Path

import pytest
from gridtext import write_grid

from xsweep.errors import ConfigError
from xsweep.orchestrator.grid.cells import Cell, Layers, SkippedCell, check_names, select_cells
from xsweep.orchestrator.grid.load import read_grid
from xsweep.orchestrator.grid.resolve import References, steps_of
from xsweep.orchestrator.grid.schema import TrainingSettings


def references(path: Path) -> References:
    return References(*read_grid(path), None)


def cells_of(path: Path) -> tuple[list[Cell], list[SkippedCell]]:
    return select_cells(references(path))


def settings_of(path: Path) -> dict[str, TrainingSettings]:
    """The settings of each cell's last training."""
    refs = references(path)
    layers = Layers(refs)
    return {
        cell.name: layers.settings(cell, steps_of(refs, cell.objective, cell.teacher)[-1])
        for cell in select_cells(refs)[0]
    }


def test_cells_are_the_product_in_the_grids_order_without_excluded_cells(tmp_path: Path) -> None:
    cells, skipped = cells_of(write_grid(tmp_path))
    assert [cell.name for cell in cells] == [
        "L6 infonce bm25 s1",
        "L6 infonce bm25 s2",
        "L3 infonce bm25 s1",
        "L3 infonce bm25 s2",
        "L3 margin_mse minilm s1",
        "L3 margin_mse minilm s2",
    ]
    assert [(cell.name, reason) for cell, reason in skipped] == [
        ("L6 margin_mse minilm s1", "excluded in line 16"),
        ("L6 margin_mse minilm s2", "excluded in line 16"),
    ]


def test_a_cell_whose_teacher_cannot_feed_the_objective_is_skipped_with_the_reason(
    tmp_path: Path,
) -> None:
    _, skipped = cells_of(write_grid(tmp_path, ("{teachers: [bm25]}", "")))
    reasons = {reason for cell, reason in skipped if cell.objective == "infonce"}
    assert reasons == {"infonce learns from labels; minilm gives scores"}


def test_scores_feed_objectives_that_learn_from_rankings(tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("infonce: {teachers: [bm25]}", "adr_mse: {teachers: [minilm]}"))
    assert "L6 adr_mse minilm s1" in {cell.name for cell in cells_of(path)[0]}


def test_include_restores_excluded_cells(tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("validation:", "include: [{backbone: L6, seed: 2}]\nvalidation:"))
    cells, skipped = cells_of(path)
    assert "L6 margin_mse minilm s2" in {cell.name for cell in cells}
    assert [cell.name for cell, _ in skipped] == ["L6 margin_mse minilm s1"]


def test_include_adds_a_teacher_that_the_objective_does_not_list(tmp_path: Path) -> None:
    path = write_grid(
        tmp_path,
        ("objectives:", "  more: {signal: labels, run: bm25, negatives: 3}\nobjectives:"),
        ("validation:", "include: [{objective: infonce, teacher: more, seed: 1}]\nvalidation:"),
    )
    named = {cell.name for cell in cells_of(path)[0] if cell.teacher == "more"}
    assert named == {"L6 infonce more s1", "L3 infonce more s1"}


def test_the_more_specific_setting_wins(tmp_path: Path) -> None:
    path = write_grid(
        tmp_path,
        (
            "overrides:",
            "overrides:\n"
            "  - {match: {objective: margin_mse, group: small}, training: {clip: 3.0}}\n"
            "  - {match: {group: small}, training: {batch_queries: 64, clip: 2.0}}",
        ),
    )
    settings = settings_of(path)
    general, small = settings["L6 infonce bm25 s1"], settings["L3 infonce bm25 s1"]
    both = settings["L3 margin_mse minilm s1"]
    assert (general.lr, general.batch_queries, general.clip) == (1e-5, 4, 1.0)
    assert (small.lr, small.batch_queries, small.clip) == (3e-5, 64, 2.0)
    # The objective's own 2 beats the group's 64; two keys beat one although they come earlier.
    assert (both.lr, both.batch_queries, both.clip) == (3e-5, 2, 3.0)


@pytest.mark.parametrize("rule", ["{seed: 2}", "{seed: [2]}", "{seed: 2, backbone: [L6, L3]}"])
def test_a_rule_takes_one_value_or_a_list(tmp_path: Path, rule: str) -> None:
    path = write_grid(tmp_path, ("{backbone: L6, objective: margin_mse}", rule))
    assert {cell.seed for cell in cells_of(path)[0]} == {1}


STAGES = """\
  two_stage:
    stages:
      - {objective: infonce, teachers: bm25, steps: 40}
      - {objective: margin_mse, teachers: [minilm], lr: 2e-5}
"""


def test_the_last_stage_decides_a_cells_teachers_and_settings(tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("seeds:", f"{STAGES}seeds:"))
    assert "L6 two_stage minilm s1" in {cell.name for cell in cells_of(path)[0]}
    last = settings_of(path)["L3 two_stage minilm s1"]
    # Its own lr, the batch of the entry that it names, the steps of the grid.
    assert (last.lr, last.batch_queries, last.steps) == (2e-5, 2, 100)


def test_a_rule_may_name_the_objective_whose_stage_it_changes(tmp_path: Path) -> None:
    rule = "overrides:\n  - {match: {objective: two_stage}, training: {clip: 2.0}}"
    path = write_grid(tmp_path, ("seeds:", f"{STAGES}seeds:"), ("overrides:", rule))
    assert settings_of(path)["L6 two_stage minilm s1"].clip == 2.0
    assert settings_of(path)["L6 infonce bm25 s1"].clip == 1.0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{stages: [{objective: infonce, teachers: bm25}], lr: 1e-4}", "'lr' belongs in a stage"),
        ("{stages: [{objective: infonse, teachers: bm25}]}", "unknown objective 'infonse'"),
        ("{stages: [{objective: bce, teachers: bm26}]}", "unknown teacher 'bm26'"),
        (
            "{stages: [{objective: bce, teachers: minilm}, {objective: bce, teachers: bm25}]}",
            "bce learns from labels; minilm gives scores",
        ),
        (
            "{stages: [{objective: bce, teachers: [bm25, minilm]}, "
            "{objective: bce, teachers: bm25}]}",
            "has one teacher",
        ),
        ("{stages: [{objective: bce, teachers: bm25, step: 4}]}", "unknown key 'step'"),
        ("{loss: bec, teachers: bm25}", "unknown loss 'bec'"),
        ("{loss: bce, plus: {klv: 1}, teachers: bm25}", "unknown loss 'klv'"),
        ("{loss: bce, plus: {mse: -1}, teachers: bm25}", "greater than 0"),
        ("{loss: mse, plus: {adr_mse: {parameters: {x: 1}}}, teachers: minilm}", "no parameter"),
    ],
)
def test_an_invalid_objective_is_refused_at_its_position(
    tmp_path: Path, entry: str, message: str
) -> None:
    path = write_grid(tmp_path, ("seeds:", f"  mine: {entry}\nseeds:"))
    with pytest.raises(ConfigError, match=message) as caught:
        check(path)
    assert "grid.yaml:11:" in str(caught.value)


def check(path: Path) -> None:
    refs = references(path)
    check_names(refs)
    Layers(refs)


def test_labels_and_scores_can_teach_one_objective_together(tmp_path: Path) -> None:
    entry = "  both: {loss: infonce, plus: {kl_div: 0.5}}\n"
    cells, skipped = cells_of(write_grid(tmp_path, ("seeds:", f"{entry}seeds:")))
    assert {cell.teacher for cell in cells if cell.objective == "both"} == {"minilm"}
    assert "both learns from scores; bm25 gives labels" in {reason for _, reason in skipped}

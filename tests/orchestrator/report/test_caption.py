import pytest

from xsweep.db.results import ParentResult
from xsweep.orchestrator.report import build_report
from xsweep.orchestrator.report.caption import Style, caption, conclusions, listed, title

STYLE = Style(best="bold", second="underlined", better="▲", worse="▼")


def sentences(cells, **options):
    return " ".join(caption(build_report(cells, sweep="s", **options), STYLE))


def test_the_caption_tells_what_was_done(small_sweep):
    assert caption(build_report(small_sweep, sweep="s"), STYLE) == [
        "Means over queries, in fractions of 1. Queries: 60 of news. Without any result, counted "
        "0: 3 of news. Candidates: BM25 (k1 = 0.9, b = 0.4), top 20. Teachers: pairs of bce, lists "
        "of infonce, rankings of adr_mse. Checkpoint: best nDCG@10 on held-out.",
        "Runs are means over the seeds 1, 2; ± is the sample standard deviation (n − 1) over "
        "seeds, not over queries.",
        "Best of a column bold, second underlined, on the values as printed; ties share the mark.",
        "▲ and ▼: significantly better and worse than BM25 (first stage), by a two-sided paired "
        "t-test on per-query scores averaged over seeds, p < 0.05 after Holm's correction over the "
        "table's 6 comparisons.",
        "Missing: 3 of 14 evaluations (1 failed (NAN), 1 running, 1 waiting). n/m: so far n of m "
        "seeds.",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 0.01}, "p < 0.01 after Holm"),
        ({"correction": "bonferroni"}, "after Bonferroni's correction over"),
        ({"correction": "bh"}, "correction of the false discovery rate over"),
        ({"correction": "none"}, "p < 0.05 without any correction over the table's 6"),
        ({"test": "randomization"}, "two-sided paired randomization test on"),
        ({"percent": True}, "in percent"),
        ({"measures": ["nDCG@10", "RR@10"]}, "over the table's 12 comparisons"),
        (
            {"baselines": ["first_stage", "minilm"]},
            "BM25 (first stage) [a] and minilm (teacher) [b]",
        ),
        ({"where": {"backbone": ["L6"]}}, "Only backbone L6."),
        (
            {"where": {"seed": ["1"]}},
            "Runs have one accepted seed each (1): no spread is shown, and",
        ),
    ],
)
def test_every_setting_shows_in_the_caption(small_sweep, options, says):
    assert says in sentences(small_sweep, **options)


def test_what_is_not_there_is_not_mentioned(make_cell):
    text = sentences(
        [make_cell(0, system="first_stage", AP=[0.1, 0.2]), make_cell(1, AP=[0.3, 0.3])],
        measures=["AP"],
    )
    for absent in ("Missing", "n/m", "–:", "Without any result", "Only", "suite"):
        assert absent not in text


def test_a_place_outside_the_sweep_is_explained(make_cell):
    cells = [
        make_cell(0, system="first_stage", AP=[0.1, 0.2]),
        make_cell(1, AP=[0.3, 0.3]),
        make_cell(2, collection="web", AP=[0.3, 0.3]),
    ]
    assert "–: not part of the sweep." in sentences(cells, measures=["AP"])


def test_an_unfinished_baseline_is_said_and_not_passed_over(make_cell):
    cells = [make_cell(0, system="first_stage", state="running"), make_cell(1, AP=[0.3, 0.3])]
    assert "No significance is shown" in sentences(cells, measures=["AP"])


def test_collections_that_differ_in_their_candidates_are_told_apart(make_cell):
    one = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    other = make_cell(1, system="first_stage", collection="web", AP=[0.1, 0.2])
    run = {"type": "run", "file": {"path": "/data/runs/splade.run.gz"}, "order": "rank"}
    other.labels["first_stage"] = "SPLADE"
    made = ParentResult("2" * 64, {}, {"spec": {"first_stage": run}})
    other.parents_summary["candidates"] = made
    text = sentences([one, other], measures=["AP"])
    assert "Candidates of news: BM25 (k1 = 0.9, b = 0.4), top 20." in text
    assert "Candidates of web: SPLADE (splade.run.gz, ordered by rank), top 20." in text


BM25 = {"type": "bm25", "k1": 0.9, "b": 0.4, "stemmer": "english", "analyzer": "snowball"}
LENGTHS = {"query_tokens": 32, "document_tokens": 256}


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (BM25, "bm25s 0.3.16, k1 = 0.9, b = 0.4, Snowball english"),
        (BM25 | {"stemmer": None}, "bm25s 0.3.16, k1 = 0.9, b = 0.4, words as they are"),
        (
            BM25 | {"analyzer": "lucene"},
            "bm25s 0.3.16, k1 = 0.9, b = 0.4, Lucene's English analysis",
        ),
        (
            {"type": "splade", "model": {"id": "naver/splade-v3", "package": None}} | LENGTHS,
            "naver/splade-v3, query 32, document 256 tokens",
        ),
        (
            {"type": "dense", "model": {"id": None, "folder": "e5"}, "similarity": "dot"} | LENGTHS,
            "e5, dot, query 32, document 256 tokens",
        ),
    ],
)
def test_the_first_stage_is_named_with_what_decides_its_ranking(make_cell, stage, says):
    cell = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    told = {"spec": {"first_stage": stage}, "packages": {"bm25s": "0.3.16"}}
    cell.parents_summary["candidates"] = ParentResult("2" * 64, {}, told)
    assert f"Candidates: BM25 ({says}), top 20." in sentences([cell], measures=["AP"])


def test_the_recall_of_the_candidates_is_told(make_cell):
    cell = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    stage = cell.parents_summary["candidates"]
    cell.parents_summary["candidates"] = stage._replace(summary={"recall": {"R@20": 0.8147}})
    assert "Recall of the candidates: R@20 0.815 of news." in sentences([cell], measures=["AP"])


def test_what_is_read_of_a_document_is_told_for_those_it_concerns(make_cell):
    cells = [make_cell(i, backbone=b, AP=[0.1, 0.2]) for i, b in enumerate(["L3", "L6"])]
    for cell, passages in zip(cells, (1, 4), strict=True):
        spec = {"query_tokens": 32, "document_tokens": 256, "max_passages": passages}
        cell.provenance["spec"] = spec
    text = sentences(cells, measures=["AP"], baselines=[])
    assert "Read of L3: query 32, document 256 tokens." in text
    assert "Read of L6: query 32, document 256 tokens, best of 4 such passages." in text


def test_conclusions_name_who_is_better_worse_and_not_told_apart(small_sweep):
    (found,) = conclusions(build_report(small_sweep, sweep="s"))
    assert found.heading == "nDCG@10 on news, against BM25 (first stage)"
    names = {verdict: [name for name, *_ in each] for verdict, each in found.found.items()}
    assert names == {
        "better": ["L6 infonce", "L6 adr_mse"],
        "worse": ["L6 bce", "L3 bce"],
        "not told apart": ["minilm (teacher)", "L3 infonce"],
    }


def test_over_many_columns_conclusions_count_them(make_cell):
    cells = []
    for place, collection in enumerate("abcde"):
        worse = collection == "e"
        stage = [0.5, 0.6, 0.4, 0.5]
        run = [0.1, 0.1, 0.0, 0.1] if worse else [0.9, 1.0, 0.8, 0.91]
        cells.append(make_cell(2 * place, system="first_stage", collection=collection, AP=stage))
        cells.append(make_cell(2 * place + 1, collection=collection, AP=run))
    (found,) = conclusions(build_report(cells, sweep="s", measures=["AP"]))
    assert found.heading == "AP, number of collections, against BM25 (first stage)"
    assert found.found == {"L6 infonce": (("better 4", "worse 1", "not told apart 0"),)}


def test_suites_are_explained_and_so_is_their_absence(make_cell):
    cells = [
        make_cell(i, collection=name, system="first_stage", AP=[0.1, 0.2])
        for i, name in enumerate(["msmarco-dev", "trec-dl-2019", "trec-dl-2020"])
    ]
    whole = sentences(cells, measures=["AP"], by="suite")
    assert "A suite's value is the unweighted mean of its collections." in whole
    part = sentences(cells[:2], measures=["AP"], by="suite")
    assert "No suite is whole in this sweep, so its collections stand alone." in part


def test_titles_name_what_there_is_one_of_and_count_what_there_is_more_of(small_sweep, make_cell):
    report = build_report(small_sweep, sweep="s", measures=["nDCG@10", "RR@10"])
    assert title(report) == "s: nDCG@10 and RR@10 on news"
    cells = [make_cell(i, collection=c, system="first_stage", AP=[0.1]) for i, c in enumerate("ab")]
    assert title(build_report(cells, sweep="s", measures=["AP"])) == "s: AP on 2 collections"


def test_lists_read_as_prose():
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_conclusions_give_difference_corrected_p_and_effect_size(make_cell):
    cells = [
        make_cell(0, system="first_stage", AP=[0.0, 0.0, 0.0, 0.0]),
        make_cell(1, objective="a", AP=[0.1, 0.2, 0.3, 0.4]),
        make_cell(2, objective="b", AP=[0.0, -0.2, 0.1, -0.1]),
    ]
    (found,) = conclusions(build_report(cells, sweep="s", measures=["AP"], alpha=0.1))
    # a: t = 3.8730, p = 0.0305, twice that after Holm; b: mean -0.05, t = -0.7746, p = 0.4950
    assert found.found == {
        "better": (("L6 a", "+0.250", "p = 0.061", "d = 1.94"),),
        "worse": (),
        "not told apart": (("L6 b", "−0.050", "p = 0.495", "d = −0.39"),),
    }

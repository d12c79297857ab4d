import re
from dataclasses import replace

import pytest
from reports import make_report

from xsweep.db.results import ParentResult
from xsweep.orchestrator.report.caption import Style, caption, conclusions, notes, title

STYLE = Style(best="bold", second="underlined", better="▲", worse="▼")


def sentences(cells, **options):
    report = make_report(cells, **options)
    return " ".join([*caption(report, STYLE), *notes(report)])


def test_the_caption_explains_the_numbers_and_notes_the_rest(small_sweep):
    report = make_report(small_sweep)
    assert caption(report, STYLE) == [
        "Means over queries, as fractions of 1, and of runs over seeds 1, 2; ± is the sample "
        "standard deviation (n − 1) over seeds, not over queries.",
        "Best in each column bold, second best underlined, by printed value; ties share the mark.",
        "▲ and ▼: significantly better and worse than BM25 (first stage) (two-sided paired t-test "
        "on per-query scores averaged over seeds, p < 0.05 after Holm correction over the table's "
        "6 comparisons).",
    ]
    assert notes(report) == [
        "Missing: 3 of 14 evaluations (1 failed (NAN), 1 running, 1 waiting). n/m: n of m "
        "seeds accepted so far.",
        "Queries: 60 in news. Queries without results, scored 0: 3 in news.",
        "Candidates: BM25 (k1 = 0.9, b = 0.4), top 20.",
        "Teachers: pairs for bce, lists for infonce, rankings for adr_mse.",
        "Checkpoint: best nDCG@10 on held-out.",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairs": True, "baselines": ["first_stage", "minilm"], "percent": True},
        {"where": {"seed": ["1"]}, "baselines": []},
        {"by": "suite", "best": "block", "test": "randomization"},
    ],
)
def test_a_caption_has_at_most_four_sentences_with_its_title(small_sweep, options):
    found = caption(make_report(small_sweep, **options), STYLE)
    assert len(found) <= 3
    assert [each for each in found if re.search(r"[.] ", each)] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": 0.01}, "p < 0.01 after Holm"),
        ({"correction": "bonferroni"}, "after Bonferroni correction over"),
        ({"correction": "bh"}, "correction of the false discovery rate over"),
        ({"correction": "none"}, "p < 0.05 without correction over the table's 6"),
        ({"test": "randomization"}, "two-sided paired randomization test on"),
        ({"percent": True}, "in percent"),
        ({"measures": ["nDCG@10", "RR@10"]}, "over the table's 12 comparisons"),
        (
            {"baselines": ["first_stage", "minilm"]},
            "BM25 (first stage) [a] and minilm (teacher) [b]",
        ),
        ({"where": {"backbone": ["L6"]}}, "Restricted to backbone L6."),
        (
            {"where": {"seed": ["1"]}},
            "one accepted seed per run (seed 1): no standard deviation, and seed variance is not ",
        ),
    ],
)
def test_every_option_is_in_the_caption(small_sweep, options, expected):
    assert expected in sentences(small_sweep, **options)


def test_the_caption_mentions_nothing_that_is_absent(make_cell):
    text = sentences(
        [make_cell(0, system="first_stage", AP=[0.1, 0.2]), make_cell(1, AP=[0.3, 0.3])],
        measures=["AP"],
    )
    for absent in ("Missing", "n/m", "–:", "Queries without results", "Restricted", "suite"):
        assert absent not in text


def test_a_place_outside_the_sweep_is_explained(make_cell):
    cells = [
        make_cell(0, system="first_stage", AP=[0.1, 0.2]),
        make_cell(1, AP=[0.3, 0.3]),
        make_cell(2, collection="web", AP=[0.3, 0.3]),
    ]
    assert "–: not part of the sweep." in sentences(cells, measures=["AP"])


def test_an_unfinished_baseline_is_mentioned(make_cell):
    cells = [make_cell(0, system="first_stage", state="running"), make_cell(1, AP=[0.3, 0.3])]
    assert "No significance tests" in sentences(cells, measures=["AP"])


def test_collections_with_different_candidates_are_described_separately(make_cell):
    one = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    other = make_cell(1, system="first_stage", collection="web", AP=[0.1, 0.2])
    run = {"type": "run", "file": {"path": "/data/runs/splade.run.gz"}, "order": "rank"}
    other.labels["first_stage"] = "SPLADE"
    made = ParentResult("2" * 64, {}, {"spec": {"first_stage": run}})
    other.parents_summary["candidates"] = made
    text = sentences([one, other], measures=["AP"])
    assert "Candidates for news: BM25 (k1 = 0.9, b = 0.4), top 20." in text
    assert "Candidates for web: SPLADE (splade.run.gz, ordered by rank), top 20." in text


BM25 = {"type": "bm25", "k1": 0.9, "b": 0.4, "stemmer": "english", "analyzer": "snowball"}
LENGTHS = {"query_tokens": 32, "document_tokens": 256}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (BM25, "bm25s 0.3.16, k1 = 0.9, b = 0.4, Snowball english"),
        (BM25 | {"stemmer": None}, "bm25s 0.3.16, k1 = 0.9, b = 0.4, no stemming"),
        (
            BM25 | {"analyzer": "lucene"},
            "bm25s 0.3.16, k1 = 0.9, b = 0.4, Lucene English analyzer",
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
def test_the_first_stage_is_described_by_the_settings_of_its_ranking(make_cell, stage, expected):
    cell = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    provenance = {"spec": {"first_stage": stage}, "packages": {"bm25s": "0.3.16"}}
    cell.parents_summary["candidates"] = ParentResult("2" * 64, {}, provenance)
    assert f"Candidates: BM25 ({expected}), top 20." in sentences([cell], measures=["AP"])


def test_the_recall_of_the_candidates_is_in_the_caption(make_cell):
    cell = make_cell(0, system="first_stage", AP=[0.1, 0.2])
    stage = cell.parents_summary["candidates"]
    cell.parents_summary["candidates"] = stage._replace(summary={"recall": {"R@20": 0.8147}})
    assert "Recall of the candidates: R@20 0.815 on news." in sentences([cell], measures=["AP"])


def test_input_limits_are_listed_for_the_backbones_they_apply_to(make_cell):
    cells = [make_cell(i, backbone=b, AP=[0.1, 0.2]) for i, b in enumerate(["L3", "L6"])]
    for cell, passages in zip(cells, (1, 4), strict=True):
        spec = {"query_tokens": 32, "document_tokens": 256, "max_passages": passages}
        cell.provenance["spec"] = spec
    text = sentences(cells, measures=["AP"], baselines=[])
    assert "Input limits for L3: query 32, document 256 tokens." in text
    assert (
        "Input limits for L6: query 32, document 256 tokens, best of up to 4 such passages." in text
    )


def test_conclusions_list_better_worse_and_not_significantly_different_systems(small_sweep):
    (found,) = conclusions(make_report(small_sweep))
    assert found.heading == "nDCG@10 on news, compared with BM25 (first stage)"
    names = {verdict: [name for name, *_ in each] for verdict, each in found.found.items()}
    assert names == {
        "better": ["L6 infonce", "L6 adr_mse"],
        "worse": ["L6 bce", "L3 bce"],
        "no significant difference": ["minilm (teacher)", "L3 infonce"],
    }


def test_conclusions_over_many_columns_count_the_columns(make_cell):
    cells = []
    for place, collection in enumerate("abcde"):
        worse = collection == "e"
        stage = [0.5, 0.6, 0.4, 0.5]
        run = [0.1, 0.1, 0.0, 0.1] if worse else [0.9, 1.0, 0.8, 0.91]
        cells.append(make_cell(2 * place, system="first_stage", collection=collection, AP=stage))
        cells.append(make_cell(2 * place + 1, collection=collection, AP=run))
    (found,) = conclusions(make_report(cells, measures=["AP"]))
    assert found.heading == "AP, number of collections, compared with BM25 (first stage)"
    assert found.found == {"L6 infonce": (("better 4", "worse 1", "no significant difference 0"),)}


def test_suites_and_their_absence_are_explained(make_cell):
    cells = [
        make_cell(i, collection=name, system="first_stage", AP=[0.1, 0.2])
        for i, name in enumerate(["msmarco-dev", "trec-dl-2019", "trec-dl-2020"])
    ]
    whole = sentences(cells, measures=["AP"], by="suite")
    assert "A suite's value is the unweighted mean of its collections." in whole
    part = sentences(cells[:2], measures=["AP"], by="suite")
    assert "No suite is complete in this sweep; its collections are shown individually." in part


def test_titles_name_a_single_collection_and_count_several(small_sweep, make_cell):
    report = make_report(small_sweep, measures=["nDCG@10", "RR@10"])
    assert title(report) == "s: nDCG@10 and RR@10 on news"
    cells = [make_cell(i, collection=c, system="first_stage", AP=[0.1]) for i, c in enumerate("ab")]
    assert title(make_report(cells, measures=["AP"])) == "s: AP on 2 collections"


def test_conclusions_give_difference_corrected_p_and_effect_size(make_cell):
    cells = [
        make_cell(0, system="first_stage", AP=[0.0, 0.0, 0.0, 0.0]),
        make_cell(1, objective="a", AP=[0.1, 0.2, 0.3, 0.4]),
        make_cell(2, objective="b", AP=[0.0, -0.2, 0.1, -0.1]),
    ]
    (found,) = conclusions(make_report(cells, measures=["AP"], alpha=0.1))
    # a: t = 3.8730, p = 0.0305, twice that after Holm; b: mean -0.05, t = -0.7746, p = 0.4950
    assert found.found == {
        "better": (("L6 a", "+0.250", "p = 0.061", "d = 1.94"),),
        "worse": (),
        "no significant difference": (("L6 b", "−0.050", "p = 0.495", "d = −0.39"),),
    }


def test_queries_and_documents_that_are_left_out_are_counted_and_named(make_cell):
    cell = make_cell(0, system="first_stage", collection="argu", nDCG_at_10=[0.1, 0.2])
    summary = {"queries": 9, "judged_queries": 2, "judged_without_text": ["a", "b", "c", "d"]}
    spec = {"collection": {"identical_ids": "drop"}}
    parents = {"candidates": ParentResult("0" * 64, summary, {"spec": spec})}
    constant = replace(
        make_cell(1, collection="argu", nDCG_at_10=[0.1, 0.3]),
        summary={"scores_are_constant": True},
    )
    text = sentences([replace(cell, parents_summary=parents), constant])
    assert "Judged queries without text, left out: 4 in argu (a, b, c, …)." in text
    assert "Queries without judgements, left out: 7 in argu." in text
    assert "Documents with the id of their query, left out in: argu." in text
    assert f"ids alone decide: {constant.name.removeprefix('evaluate ')}." in text


def test_only_seeds_with_an_accepted_result_are_named(make_cell):
    text = sentences(
        [
            make_cell(0, system="first_stage", nDCG_at_10=[0.1, 0.2]),
            make_cell(1, seed=1, nDCG_at_10=[0.2, 0.3]),
            make_cell(2, seed=2, state="failed", failure="NAN"),
            make_cell(3, seed=3, state="running"),
        ]
    )
    assert "one accepted seed per run (seed 1)" in text

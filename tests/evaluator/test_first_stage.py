import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator import first_stage
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.trec import read_run, sort_docs
from xsweep.evaluator.first_stage import (
    LUCENE_STOP_WORDS,
    lucene_words,
    prepare_candidates,
    read_candidates,
    retrieve,
    search,
    snowball_words,
)
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.specs import Bm25Spec, CandidatesSpec, IrdsSpec, Stemmer

PLAIN = Bm25Spec(stemmer=None)


def test_scores_are_lucenes_bm25_by_hand() -> None:
    documents = [("a", "red fox fox"), ("b", "red dog"), ("c", "cow cow cow cow")]
    scores = search(documents, {"q": "fox red"}, PLAIN, depth=10)["q"]

    def term(frequency: int, length: int, documents_with: int) -> float:
        idf = math.log(1 + (3 - documents_with + 0.5) / (documents_with + 0.5))
        return idf * frequency / (frequency + 0.9 * (1 - 0.4 + 0.4 * length / 3))

    assert scores == pytest.approx(
        {"a": term(2, 3, 1) + term(1, 3, 2), "b": term(1, 2, 2)}, rel=1e-6
    )


def test_ties_break_by_document_id_descending_at_the_cut_too() -> None:
    documents = [(name, "same words") for name in ("d2", "d10", "d1", "d9")]
    run = search(documents, {"q": "words"}, PLAIN, depth=2)
    assert list(run["q"]) == ["d9", "d2"]


def test_documents_and_queries_without_a_common_word_are_left_out() -> None:
    run = search([("a", "fox"), ("b", "")], {"q": "fox", "none": "cow", "empty": ""}, PLAIN, 5)
    assert {query: list(docs) for query, docs in run.items()} == {"q": ["a"]}


def test_stems_match_and_stop_words_do_not() -> None:
    documents = [("a", "the runner was running"), ("b", "the cat")]
    assert list(search(documents, {"q": "the runs"}, Bm25Spec(), 5)["q"]) == ["a"]


def test_documents_without_words_cannot_be_indexed() -> None:
    with pytest.raises(DataError, match="no words"):
        search([("a", ""), ("b", "!")], {"q": "fox"}, PLAIN, 5)


def _collection(folder: Path) -> dict:
    (folder / "docs.tsv").write_text("d1\tred fox\nd2\tred dog\nd3\tblue cow\n")
    (folder / "queries.tsv").write_text("q1\tred fox\nq2\tblue\nq3\tunjudged red\n")
    (folder / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d1 1\nq2 0 d3 2\n")
    names = {"documents": "docs.tsv", "queries": "queries.tsv", "qrels": "qrels.txt"}
    paths = {role: {"path": str(folder / name)} for role, name in names.items()}
    return {"source": "files", "name": "tiny", **paths}


def _prepare(folder: Path, **settings: object) -> Path:
    out = folder / "out"
    out.mkdir()
    spec = CandidatesSpec.model_validate({"collection": _collection(folder), **settings})
    prepare_candidates(spec, out)
    return out


def test_prepared_bm25_candidates_hold_the_judged_queries_and_their_recall(tmp_path: Path) -> None:
    out = _prepare(tmp_path, first_stage={"type": "bm25"}, depth=1)
    queries, qrels, run = read_candidates(out)
    assert {query: list(docs) for query, docs in run.items()} == {"q1": ["d1"], "q2": ["d3"]}
    assert queries == {"q1": "red fox", "q2": "blue"}
    assert qrels == {"q1": {"d1": 1}, "q2": {"d1": 1, "d3": 2}}
    assert json.loads((out / "summary.json").read_text()) == {
        "queries": 3,
        "judged_queries": 2,
        "judged_without_text": [],
        "documents": 3,
        "candidates": 2,
        "recall": {"R@1": 0.75},
        "order": "score",
        "queries_without_candidates": 0,
    }


def test_provenance_has_the_first_stages_settings_and_packages(tmp_path: Path) -> None:
    out = _prepare(tmp_path, first_stage={"type": "bm25", "k1": 1.2, "b": 0.75}, depth=1)
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["spec"]["first_stage"] == {
        **{"type": "bm25", "k1": 1.2, "b": 0.75},
        **{"stemmer": "english", "analyzer": "snowball"},
    }
    assert origin["spec"]["depth"] == 1
    assert origin["spec"]["collection"]["documents"]["path"] == "docs.tsv"
    for package in ("bm25s", "PyStemmer"):
        assert origin["packages"][package] == version(package)
    assert origin["started"] <= origin["ended"]


@pytest.mark.parametrize(("order", "expected"), [("score", ["d2", "d1"]), ("rank", ["d1", "d3"])])
def test_a_given_run_is_cut_in_the_order_of_the_setting(
    tmp_path: Path, order: str, expected: list[str]
) -> None:
    run = tmp_path / "given.run"
    run.write_text("q1 Q0 d1 1 2.0 t\nq1 Q0 d2 3 3.0 t\nq1 Q0 d3 2 1.0 t\nq9 Q0 d1 1 1.0 t\n")
    stage = {"type": "run", "file": {"path": str(run)}, "order": order}
    out = _prepare(tmp_path, first_stage=stage, depth=2)
    assert list(read_candidates(out).run["q1"]) == expected
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["order"], summary["queries_without_candidates"]) == (order, 1)


def test_a_run_with_unknown_documents_or_queries_is_a_data_error(tmp_path: Path) -> None:
    run = tmp_path / "given.run"
    stage = {"type": "run", "file": {"path": str(run)}}
    run.write_text("q1 Q0 d1 1 2.0 t\nq1 Q0 d77 2 1.0 t\n")
    with pytest.raises(DataError, match=r"\.run:2: 1 of its documents, such as 'd77', are not in"):
        _prepare(tmp_path, first_stage=stage)
    run.write_text("other Q0 d1 1 2.0 t\n")
    (tmp_path / "second").mkdir()
    with pytest.raises(DataError, match="has none of the judged queries of 'tiny'"):
        _prepare(tmp_path / "second", first_stage=stage)


@pytest.mark.parametrize("known", [7, None])
def test_documents_are_read_to_be_counted_only_where_their_number_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int | None
) -> None:
    texts = {"d1": "one", "d2": "two", "d3": "three"}
    reads = []

    def documents() -> Iterator[tuple[str, str]]:
        reads.append(1)
        return iter(texts.items())

    indexed = Collection(
        **{"name": "indexed", "queries": {"q1": "one"}, "qrels": {"q1": {"d1": 1}}},
        documents=documents,
        lookup=lambda ids: {doc_id: texts[doc_id] for doc_id in ids & texts.keys()},
        count=lambda: known,
    )
    monkeypatch.setattr(first_stage, "load_collection", lambda spec: indexed)
    (tmp_path / "given.run").write_text("q1 Q0 d1 1 2.0 t\n")
    stage = {"type": "run", "file": {"path": str(tmp_path / "given.run")}}
    out = _prepare(tmp_path, first_stage=stage)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["documents"], len(reads)) == ((7, 0) if known else (3, 1))


def test_a_first_stage_that_finds_nothing_is_a_data_error(tmp_path: Path) -> None:
    collection = _collection(tmp_path)
    (tmp_path / "queries.tsv").write_text("q1\tzebra\n")
    spec = CandidatesSpec.model_validate({"collection": collection})
    with pytest.raises(DataError, match="finds nothing at all"):
        prepare_candidates(spec, tmp_path)


def test_scoreddocs_belong_to_ir_datasets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ir_datasets collections only"):
        _prepare(tmp_path, first_stage={"type": "scoreddocs"})


def test_bm25_is_near_the_stored_runs_on_cranfield(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    home = str(real_data / "ir_datasets_home")
    collection = load_collection(IrdsSpec(name="cranfield", id="cranfield", home=home))
    stored = read_run(real_data / "first-stage-bm25/cranfield.run.gz")
    ours = search(list(collection.documents()), collection.queries, Bm25Spec(), depth=100)
    for name in ("nDCG@10", "R@100"):
        ours_mean, stored_mean = (
            mean(evaluate_run(collection.qrels, run, [name])[name]) for run in (ours, stored)
        )
        assert ours_mean == pytest.approx(stored_mean, abs=0.005), name


def test_lucenes_analysis_by_hand() -> None:
    # Porter's own examples: caresses, ponies, relational, hopping.
    text = "The caresses of Ponies: relational hopping isn't 3.14, dog’s x-ray"
    assert lucene_words([text, ""]) == [
        ["caress", "poni", "relat", "hop", "isn't", "3.14", "dog", "x", "rai"],
        [],
    ]
    assert lucene_words(["The runner's 3.14 U.S. dogs"]) == [["runner", "3.14", "u.", "dog"]]
    assert len(LUCENE_STOP_WORDS) == 33


def test_snowballs_analysis_drops_stop_words_and_single_letters() -> None:
    assert snowball_words(["The running dogs x"], "english") == [["run", "dog"]]
    assert snowball_words(["The running dogs x"], None) == [["the", "running", "dogs"]]


@pytest.mark.parametrize("language", get_args(Stemmer))
def test_every_language_of_a_stemmer_has_stems_and_stop_words(language: str) -> None:
    assert snowball_words(["NASA 2026"], language)[0][-1] == "2026"


def _ids_as_texts(ids: list[str]) -> Collection:
    return Collection("c", lambda: ((name, name) for name in ids), {}, {})


@given(data=st.data(), chunk=st.integers(1, 7), depth=st.integers(1, 6), positive=st.booleans())
@settings(deadline=None)
def test_retrieval_in_chunks_equals_sorting_all_scores(
    data: st.DataObject, chunk: int, depth: int, positive: bool
) -> None:
    ids = data.draw(st.lists(st.text("ab1_é", min_size=1), min_size=1, max_size=20, unique=True))
    values = st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0])
    rows = {name: [data.draw(values), data.draw(values)] for name in ids}
    kept, first_stage.TEXTS_PER_CHUNK = first_stage.TEXTS_PER_CHUNK, chunk
    try:
        run, count = retrieve(
            _ids_as_texts(ids),
            {"q0": "", "q1": ""},
            lambda texts: np.array([rows[text] for text in texts], dtype=np.float32),
            depth,
            positive_only=positive,
        )
    finally:
        first_stage.TEXTS_PER_CHUNK = kept
    assert count == len(ids)
    for place, query in enumerate(("q0", "q1")):
        scores = {name: row[place] for name, row in rows.items() if row[place] > 0 or not positive}
        assert list(run.get(query, {}).items()) == sort_docs(scores)[:depth]


def test_an_empty_collection_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no documents to retrieve"):
        retrieve(_ids_as_texts([]), {"q": ""}, lambda texts: np.zeros((0, 1)), 5)


def test_progress_counts_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "TEXTS_PER_CHUNK", 2)
    reported: list[tuple[int, int]] = []
    retrieve(
        _ids_as_texts(["a", "b", "c"]),
        {"q": ""},
        lambda texts: np.ones((len(texts), 1), dtype=np.float32),
        5,
        report=lambda done, total: reported.append((done, total)),
    )
    assert reported == [(2, 3), (3, 3)]


IDENTICAL = {"q1": "red fox", "q2": "red cow", "q3": "blue"}
"""Every query is a document, too; d1 and d2 are further answers to q1 and q2."""


def _identical(folder: Path, **settings: str) -> dict:
    documents = {**IDENTICAL, "d1": "a red fox runs", "d2": "a red cow stands still"}
    (folder / "docs.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in documents.items()))
    (folder / "queries.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in IDENTICAL.items()))
    (folder / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d2 1\nq3 0 d1 1\n")
    names = {"documents": "docs.tsv", "queries": "queries.tsv", "qrels": "qrels.txt"}
    paths = {role: {"path": str(folder / name)} for role, name in names.items()}
    return {"source": "files", "name": "identical", **paths, **settings}


@pytest.mark.parametrize("first_stage", ["bm25", "run"])
def test_a_querys_own_document_is_dropped_before_the_cut_at_depth(
    first_stage: str, tmp_path: Path
) -> None:
    stage: dict = {"type": "bm25", "stemmer": None}
    if first_stage == "run":
        given = tmp_path / "given.run"
        given.write_text(
            "q1 Q0 q1 1 9 t\nq1 Q0 d1 2 8 t\nq1 Q0 q2 3 7 t\n"
            "q2 Q0 q2 1 9 t\nq2 Q0 d2 2 8 t\nq3 Q0 q3 1 9 t\n"
        )
        stage = {"type": "run", "file": {"path": str(given)}}

    def candidates(out: str, **settings: str) -> tuple[dict, dict]:
        spec = CandidatesSpec.model_validate(
            {"collection": _identical(tmp_path, **settings), "first_stage": stage, "depth": 1}
        )
        folder = tmp_path / out
        folder.mkdir()
        prepare_candidates(spec, folder)
        run = {query: list(docs) for query, docs in read_candidates(folder).run.items()}
        return run, json.loads((folder / "summary.json").read_text())

    kept, summary = candidates("kept")
    assert kept == {"q1": ["q1"], "q2": ["q2"], "q3": ["q3"]}
    assert summary["recall"] == {"R@1": 0}
    dropped, summary = candidates("dropped", identical_ids="drop")
    assert dropped == {"q1": ["d1"], "q2": ["d2"]}
    assert summary["recall"] == {"R@1": pytest.approx(2 / 3)}
    assert summary["queries_without_candidates"] == 1


def test_recall_is_over_the_judged_queries_that_have_text_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    collection = _identical(tmp_path, identical_ids="drop")
    with Path(collection["qrels"]["path"]).open("a") as qrels:
        qrels.write("q9 0 d1 1\nq8 0 d2 1\n")
    with Path(collection["queries"]["path"]).open("a") as queries:
        queries.write("q7\tnever judged\n")
    spec = CandidatesSpec.model_validate({"collection": collection, "first_stage": PLAIN})
    prepare_candidates(spec, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recall"] == {"R@100": pytest.approx(2 / 3)}
    assert summary["judged_without_text"] == ["q8", "q9"]
    assert (summary["queries"], summary["judged_queries"]) == (4, 3)

import json
import math
from importlib.metadata import version
from pathlib import Path

import pytest

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.trec import read_run
from xsweep.evaluator.first_stage import bm25, prepare_candidates, read_candidates, search
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.specs import COLLECTION, Bm25Spec, CandidatesSpec, IrdsSpec

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


def test_an_unknown_stemmer_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown stemmer 'klingon'"):
        search([("a", "fox")], {"q": "fox"}, Bm25Spec(stemmer="klingon"), 5)


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
    prepare_candidates(spec, {}, out)
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
        "documents": 3,
        "candidates": 2,
        "recall": {"R@1": 0.75},
        "order": "score",
        "queries_without_candidates": 0,
    }


def test_candidates_keep_by_what_they_were_found(tmp_path: Path) -> None:
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
def test_a_given_run_is_cut_in_the_order_that_was_asked_for(
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


def test_a_first_stage_that_finds_nothing_is_a_data_error(tmp_path: Path) -> None:
    collection = _collection(tmp_path)
    (tmp_path / "queries.tsv").write_text("q1\tzebra\n")
    spec = CandidatesSpec.model_validate({"collection": collection})
    with pytest.raises(DataError, match="finds nothing at all"):
        prepare_candidates(spec, {}, tmp_path)


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
    ours = bm25(collection, depth=100)
    for name in ("nDCG@10", "R@100"):
        ours_mean, stored_mean = (
            mean(evaluate_run(collection.qrels, run, [name])[name]) for run in (ours, stored)
        )
        assert ours_mean == pytest.approx(stored_mean, abs=0.005), name


def test_the_apidocs_spec_needs_only_its_split() -> None:
    spec = COLLECTION.validate_python({"source": "apidocs", "name": "a", "split": "test"})
    assert spec.versions == {}

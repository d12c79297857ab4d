import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xsweep.errors import ConfigError, DataError, DivergenceError, Stopped
from xsweep.evaluator.__main__ import main
from xsweep.evaluator.data.files import read_manifest, write_manifest
from xsweep.evaluator.data.trec import read_run
from xsweep.evaluator.first_stage import read_candidates
from xsweep.evaluator.jobs import Evaluation, evaluate_together, run_job
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import EvaluateSpec, ScoringSpec

WORDS = ["fox", "dog", "cow", "number", "query", "rank", "king", "france", "array", "quick"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """60 documents, 8 judged queries and one that finds nothing, one document empty."""
    folder = tmp_path_factory.mktemp("collection")
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(WORDS, int(random.integers(1, 30)))) for _ in range(60)]
    texts[7] = ""
    lines = "".join(f"d{number}\t{text}\n" for number, text in enumerate(texts))
    (folder / "docs.tsv").write_text(lines)
    queries = [" ".join(random.choice(WORDS, 2, replace=False)) for _ in range(8)] + ["zzz"]
    (folder / "queries.tsv").write_text(
        "".join(f"q{n}\t{text}\n" for n, text in enumerate(queries))
    )
    (folder / "qrels.txt").write_text("".join(f"q{n} 0 d{n * 5} 1\n" for n in range(9)))
    names = {"documents": "docs.tsv", "queries": "queries.tsv", "qrels": "qrels.txt"}
    paths = {role: {"path": str(folder / name)} for role, name in names.items()}
    return {"source": "files", "name": "tiny", **paths}


@pytest.fixture(scope="module")
def do(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs a job in a new folder and gives that folder."""

    def run(kind: str, spec: dict, **inputs: Path) -> Path:
        out = tmp_path_factory.mktemp(kind)
        run_job(kind, spec, inputs, out)
        return out

    return run


@pytest.fixture(scope="module")
def candidates(do: Callable, collection: dict) -> Path:
    return do("prepare", {"type": "candidates", "collection": collection, "depth": 20})


@pytest.fixture(scope="module")
def tokens(do: Callable, collection: dict, make_model_folder: Callable) -> Path:
    tokenizer = {"folder": str(make_model_folder("bert"))}
    return do("prepare", {"type": "tokens", "documents": collection, "tokenizer": tokenizer})


def _model(folder: Path, kind: str = "cross_encoder") -> dict:
    return {"type": kind, "models": [{"folder": str(folder)}]}


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_first_stage_is_evaluated_in_its_own_order(
    do: Callable, collection: dict, candidates: Path
) -> None:
    out = do("evaluate", {"collection": collection, "depth": 5}, candidates=candidates)
    summary = _summary(out)
    assert (summary["queries"], summary["queries_without_results"]) == (9, 1)
    per_query = json.loads((out / "per_query.json").read_text())
    assert per_query["nDCG@10"]["q8"] == 0.0
    assert summary["means"]["nDCG@10"] == pytest.approx(np.mean([*per_query["nDCG@10"].values()]))
    run, whole = read_run(out / "run.trec.gz"), read_run(candidates / "candidates.run.gz")
    assert {query: list(docs) for query, docs in run.items()} == {
        query: list(docs)[:5] for query, docs in whole.items()
    }
    assert read_manifest(out)["files"].keys() >= {"run.trec.gz", "per_query.json", "summary.json"}


def test_a_model_gives_equal_scores_from_the_token_store_and_from_texts(
    do: Callable, collection: dict, candidates: Path, tokens: Path, make_model_folder: Callable
) -> None:
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer, "depth": 10}
    stored = do("evaluate", spec, candidates=candidates, tokens=tokens)
    missing = {role: {"path": "/nowhere"} for role in ("documents", "queries", "qrels")}
    without_texts = {**spec, "collection": collection | missing}
    again = do("evaluate", without_texts, candidates=candidates, tokens=tokens)
    from_texts = do("evaluate", spec, candidates=candidates)
    for name in ("run.trec.gz", "per_query.json"):
        assert (stored / name).read_bytes() == (from_texts / name).read_bytes(), name
        assert (stored / name).read_bytes() == (again / name).read_bytes(), name
    summary = _summary(stored)
    assert summary["pairs"] == sum(map(len, read_run(stored / "run.trec.gz").values()))
    assert (summary["precision"], summary["precision_reason"]) == ("fp32", "as asked")


def test_a_token_store_of_another_tokenizer_is_not_used(
    do: Callable, collection: dict, candidates: Path, tokens: Path, make_model_folder: Callable
) -> None:
    scorer = {"type": "model", "model": _model(make_model_folder("roberta"))}
    spec = {"collection": collection, "scorer": scorer}
    stored = do("evaluate", spec, candidates=candidates, tokens=tokens)
    plain = do("evaluate", spec, candidates=candidates)
    assert (stored / "run.trec.gz").read_bytes() == (plain / "run.trec.gz").read_bytes()


def test_a_trained_model_is_an_input(
    do: Callable,
    collection: dict,
    candidates: Path,
    make_model_folder: Callable,
    tmp_path: Path,
) -> None:
    (tmp_path / "model").symlink_to(make_model_folder("bert"))
    spec = {"collection": collection, "scorer": {"type": "run"}}
    trained = do("evaluate", spec, candidates=candidates, run=tmp_path)
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    named = do("evaluate", spec | {"scorer": scorer}, candidates=candidates)
    assert read_run(trained / "run.trec.gz") == read_run(named / "run.trec.gz")
    with pytest.raises(ConfigError, match='needs the input "run"'):
        do("evaluate", spec, candidates=candidates)


def test_several_models_give_the_mean_of_their_scores(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable
) -> None:
    folders = [make_model_folder("bert"), make_model_folder("roberta")]

    def scores(*chosen: Path) -> dict:
        models = [{"folder": str(folder)} for folder in chosen]
        model = {"type": "cross_encoder", "models": models}
        scorer = {"type": "model", "model": model}
        out = do("evaluate", {"collection": collection, "scorer": scorer}, candidates=candidates)
        return read_run(out / "run.trec.gz")

    first, second, both = scores(folders[0]), scores(folders[1]), scores(*folders)
    for query, docs in both.items():
        for doc, score in docs.items():
            expected = (first[query][doc] + second[query][doc]) / 2
            assert score == pytest.approx(expected, abs=1e-6)


def test_teach_scores_candidates_and_the_relevant_documents_they_missed(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable
) -> None:
    model = _model(make_model_folder("bert"), "bi_encoder")
    out = do("teach", {"collection": collection, "model": model}, candidates=candidates)
    scores, found = read_run(out / "scores.run.gz"), read_run(candidates / "candidates.run.gz")
    for number in range(9):
        relevant = f"d{number * 5}"
        assert scores[f"q{number}"].keys() == {*found.get(f"q{number}", {}), relevant}
    assert all(-1.001 <= score <= 1.001 for docs in scores.values() for score in docs.values())
    added = sum(len(docs) for docs in scores.values()) - sum(len(docs) for docs in found.values())
    assert _summary(out)["relevant_added"] == added > 0


def test_relevant_documents_without_text_are_counted_not_scored(
    do: Callable,
    collection: dict,
    tokens: Path,
    make_model_folder: Callable,
    tmp_path: Path,
) -> None:
    (tmp_path / "qrels.txt").write_text("q0 0 d0 1\nq0 0 gone 1\n")
    subset = collection | {"qrels": {"path": str(tmp_path / "qrels.txt")}}
    candidates = do("prepare", {"type": "candidates", "collection": subset, "depth": 3})
    spec = {"collection": subset, "model": _model(make_model_folder("bert"))}
    for inputs in ({}, {"tokens": tokens}):
        out = do("teach", spec, candidates=candidates, **inputs)
        assert _summary(out)["relevant_without_text"] == 1
        assert "gone" not in read_run(out / "scores.run.gz")["q0"]


def test_candidates_that_the_collection_lacks_are_data_errors(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable, tmp_path: Path
) -> None:
    (tmp_path / "docs.tsv").write_text("other\tfox\n")
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {
        "collection": collection | {"documents": {"path": str(tmp_path / "docs.tsv")}},
        "scorer": scorer,
    }
    with pytest.raises(DataError, match="has no document"):
        do("evaluate", spec, candidates=candidates)


def test_progress_is_reported_and_a_stopped_job_has_no_manifest(
    collection: dict, candidates: Path, make_model_folder: Callable, tmp_path: Path
) -> None:
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer, "batch_tokens": 128}
    reported = []

    def report(done: int, total: int, **figures: float) -> None:
        reported.append((done, total, figures["pairs_per_s"]))
        if len(reported) == 3:
            raise Stopped("stop requested")

    with pytest.raises(Stopped):
        run_job("evaluate", spec, {"candidates": candidates}, tmp_path, report)
    assert [done for done, _, _ in reported] == sorted(done for done, _, _ in reported)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("train", {}, "unknown kind of job 'train'"),
        ("prepare", {"type": "soup"}, "the spec of this prepare job is wrong"),
        ("evaluate", {"depth": 0}, "collection is missing; depth should be "),
        ("evaluate", {"collection": {"source": "irds", "name": "x", "id": "y"}}, "needs the input"),
    ],
)
def test_invalid_jobs_are_config_errors(
    tmp_path: Path, kind: str, spec: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_job(kind, spec, {}, tmp_path)


def test_the_program_runs_one_job_from_json(
    tmp_path: Path, collection: dict, capsys: pytest.CaptureFixture
) -> None:
    job = {"kind": "prepare", "spec": {"type": "candidates", "collection": collection}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert main([str(tmp_path / "job.json"), str(tmp_path / "out")]) == 0
    read_manifest(tmp_path / "out")
    assert main([str(tmp_path / "job.json"), str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"kind": "x", "spec": {}}', "unknown kind"),
    ],
)
def test_the_program_reports_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: str, message: str
) -> None:
    (tmp_path / "job.json").write_text(content)
    assert main([str(tmp_path / "job.json"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert main([]) == 2
    assert main([str(tmp_path / "none.json"), str(tmp_path / "out")]) == 2


def test_a_saved_model_is_evaluated_with_its_longest_input_respected(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable
) -> None:
    folder = make_model_folder("bert")
    assert load_cross_encoder(folder)[1].model_max_length == 128
    scorer = {"type": "model", "model": _model(folder)}
    spec = {"collection": collection, "scorer": scorer, "document_tokens": 4000}
    assert _summary(do("evaluate", spec, candidates=candidates))["pairs"] > 0


def test_a_short_query_leaves_its_room_to_the_document(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable
) -> None:
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer}
    wide, narrow = (
        read_run(
            do("evaluate", spec | {"query_tokens": tokens}, candidates=candidates) / "run.trec.gz"
        )
        # 128 tokens are the model's longest input; every query has two.
        for tokens in (120, 32)
    )
    assert wide == narrow


def _stopping_after(batches: int) -> Callable[..., None]:
    reported = []

    def report(done: int, total: int, **figures: float) -> None:
        reported.append(done)
        if len(reported) == batches:
            raise Stopped("stop requested")

    return report


@pytest.mark.parametrize("same_folder", [True, False])
def test_a_stopped_evaluation_resumes_and_writes_the_same_bytes(
    do: Callable,
    collection: dict,
    candidates: Path,
    make_model_folder: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_folder: bool,
) -> None:
    monkeypatch.setattr("xsweep.evaluator.scoring.SAVE_EVERY_S", 0.0)
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer, "batch_tokens": 200}
    whole = do("evaluate", spec, candidates=candidates)
    inputs = {"candidates": candidates}
    first, second = tmp_path / "1", tmp_path / ("1" if same_folder else "2")
    for folder in {first, second}:
        folder.mkdir()
    with pytest.raises(Stopped):
        run_job("evaluate", spec, inputs, first, _stopping_after(4))
    assert (first / "partial" / "scores-0.npz").is_file()
    reported: list[int] = []
    earlier = [] if same_folder else [first]
    run_job(
        "evaluate", spec, inputs, second, lambda done, total, **_: reported.append(done), earlier
    )
    for name in ("run.trec.gz", "per_query.json"):
        assert (whole / name).read_bytes() == (second / name).read_bytes(), name
    fresh: list[int] = []
    run_job("evaluate", spec, inputs, tmp_path, lambda done, total, **_: fresh.append(done))
    assert reported == fresh[-len(reported) :]
    assert len(reported) == len(fresh) - 4
    assert set(read_manifest(second)["files"]) == set(read_manifest(whole)["files"])


def test_partial_scores_of_other_settings_are_not_used(
    do: Callable,
    collection: dict,
    candidates: Path,
    make_model_folder: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xsweep.evaluator.scoring.SAVE_EVERY_S", 0.0)
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer, "batch_tokens": 200}
    other = spec | {"document_tokens": 5}
    whole = do("evaluate", other, candidates=candidates)
    inputs = {"candidates": candidates}
    with pytest.raises(Stopped):
        run_job("evaluate", spec, inputs, tmp_path, _stopping_after(3))
    run_job("evaluate", other, inputs, tmp_path)
    assert (whole / "run.trec.gz").read_bytes() == (tmp_path / "run.trec.gz").read_bytes()


def test_the_program_resumes_in_a_killed_ones_folder(
    collection: dict, candidates: Path, make_model_folder: Callable, tmp_path: Path
) -> None:
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    job = {"kind": "evaluate", "spec": {"collection": collection, "scorer": scorer}}
    job["inputs"] = {"candidates": str(candidates)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "out" / "partial").mkdir(parents=True)
    assert main([str(tmp_path / "job.json"), str(tmp_path / "out")]) == 0
    assert "partial" not in {path.name for path in (tmp_path / "out").iterdir()}


def test_pairs_that_two_collections_share_are_scored_once(
    do: Callable, collection: dict, candidates: Path, make_model_folder: Callable, tmp_path: Path
) -> None:
    other = do("prepare", {"type": "candidates", "collection": collection, "depth": 5})
    scorer = {"type": "model", "model": _model(make_model_folder("bert"))}
    spec = {"collection": collection, "scorer": scorer}
    alone = [do("evaluate", spec, candidates=folder) for folder in (candidates, other)]
    checked = EvaluateSpec.model_validate(spec)
    together = []
    for name, folder in (("a", candidates), ("b", other)):
        (tmp_path / name).mkdir()
        together.append(Evaluation(checked, {"candidates": folder}, tmp_path / name))
    evaluate_together(together)
    for one, both in zip(alone, together, strict=True):
        for query, docs in read_run(one / "run.trec.gz").items():
            assert read_run(both.out / "run.trec.gz")[query] == pytest.approx(docs, abs=1e-6)
    figures = [_summary(each.out) for each in together]
    assert figures[0]["scored"] == figures[1]["scored"] < figures[0]["pairs"] + figures[1]["pairs"]
    assert figures[0]["scored"] <= figures[0]["pairs"], "the shorter list is part of the longer"
    different = together[1]._replace(spec=checked.model_copy(update={"document_tokens": 9}))
    with pytest.raises(ConfigError, match="must agree on model and settings"):
        evaluate_together([together[0], different])


def test_the_best_passage_of_a_long_document_counts(
    do: Callable, collection: dict, candidates: Path, tokens: Path, make_model_folder: Callable
) -> None:
    folder = make_model_folder("bert")
    scorer = {"type": "model", "model": _model(folder)}
    spec = {"collection": collection, "scorer": scorer, "document_tokens": 8}
    windows = {"max_passages": 3, "passage_overlap_tokens": 2}
    out = do("evaluate", spec | windows, candidates=candidates, tokens=tokens)
    found, first = (
        read_run(each / "run.trec.gz")
        for each in (out, do("evaluate", spec, candidates=candidates, tokens=tokens))
    )
    model, tokenizer = load_cross_encoder(folder)
    queries = read_candidates(candidates).queries
    store = TokenStore(tokens)
    higher = 0
    for query, docs in found.items():
        query_ids = tokenize(tokenizer, [queries[query]], 32)[0]
        for doc, score in docs.items():
            parts = [store[doc][start : start + 8] for start in (0, 6, 12)]
            pairs = [
                (query_ids, part) for place, part in enumerate(parts) if not place or len(part) > 2
            ]
            settings = ScoringSpec(query_tokens=32, document_tokens=8)
            scored = score_pairs(model, PairEncoder(tokenizer), pairs, settings)
            assert score == pytest.approx(scored.scores.max(), abs=1e-5)
            higher += score > first[query][doc] + 1e-4
    assert higher > 0
    assert _summary(out)["scored"] > sum(map(len, found.values()))


def test_the_summary_has_the_recall_of_the_re_ranked_candidates(
    do: Callable, collection: dict, candidates: Path
) -> None:
    summary = _summary(
        do("evaluate", {"collection": collection, "depth": 5}, candidates=candidates)
    )
    run = read_run(candidates / "candidates.run.gz")
    found = [f"d{n * 5}" in list(run.get(f"q{n}", {}))[:5] for n in range(9)]
    assert summary["recall"] == {"R@5": pytest.approx(np.mean(found))}
    whole = _summary(do("evaluate", {"collection": collection}, candidates=candidates))
    assert list(whole["recall"]) == ["R@20"]


def _with_head(make_model_folder: Callable, folder: Path, weight: float, bias: float) -> Path:
    """A model whose head multiplies by a weight and adds a bias."""
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    with torch.no_grad():
        model.classifier.weight.fill_(weight)
        model.classifier.bias.fill_(bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["evaluate", "teach"])
def test_no_result_is_published_for_a_model_whose_scores_are_not_finite(
    kind: str, collection: dict, candidates: Path, make_model_folder: Callable, tmp_path: Path
) -> None:
    model = _model(_with_head(make_model_folder, tmp_path / "model", 1, float("nan")))
    spec = {"collection": collection}
    spec |= {"model": model} if kind == "teach" else {"scorer": {"type": "model", "model": model}}
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DivergenceError, match="no finite value"):
        run_job(kind, spec, {"candidates": candidates}, out)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(("weight", "constant"), [(0.0, True), (1.0, False)])
def test_a_model_that_scores_everything_alike_is_marked_in_the_summary(
    weight: float,
    constant: bool,
    do: Callable,
    collection: dict,
    candidates: Path,
    make_model_folder: Callable,
    tmp_path: Path,
) -> None:
    model = _model(_with_head(make_model_folder, tmp_path / "model", weight, 0.25))
    scorer = {"type": "model", "model": model}
    out = do("evaluate", {"collection": collection, "scorer": scorer}, candidates=candidates)
    assert _summary(out)["scores_are_constant"] is constant


def test_files_of_a_result_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"weight": torch.ones(1)}, tmp_path / "model" / "model.safetensors")
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o600
    write_manifest(tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}

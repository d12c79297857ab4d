"""Trials that end early or diverge are results too; a run takes the best one's settings."""

import json
import shutil
from pathlib import Path

import pytest
from curves import curve, digest

from xsweep.errors import ConfigError, DataError, DivergenceError
from xsweep.evaluator.data.files import read_manifest
from xsweep.trainer.search import run_job as pick_winner
from xsweep.trainer.train import run_job

SEARCH = {"settings": ["lr"], "measure": "nDCG@10"}


def read(folder: Path, name: str = "summary") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def trial_of(spec: dict, lr: float, **trial: object) -> dict:
    return {**spec, "optimisation": {**spec["optimisation"], "lr": lr}, "trial": trial}


@pytest.fixture(scope="module")
def spec(world) -> dict:
    return world.spec(engine="plain", steps=6)


@pytest.fixture(scope="module")
def trials(world, spec, tmp_path_factory) -> dict[str, Path]:
    """Three trials: a rate too low to learn, one that is good, one that diverges."""
    home = tmp_path_factory.mktemp("trials")
    folders = {}
    for place, lr in enumerate((1e-9, 1e-3, 0.99)):
        role = f"trial-{place + 1:03}"
        folders[role] = home / role
        changed = trial_of(spec, lr)
        if lr > 0.9:
            write_diverged(folders[role], changed)
        else:
            run_job("train", changed, world.inputs, folders[role])
    return folders


def write_diverged(out: Path, spec: dict) -> None:
    from xsweep.trainer.search import record_divergence
    from xsweep.trainer.specs import TrainSpec

    out.mkdir()
    record_divergence(TrainSpec.model_validate(spec), out, DivergenceError("the loss is nan"))


def test_a_halted_trial_ends_there_with_its_best_validation(world, spec, tmp_path):
    reported = []

    def report(done, total, **figures):
        reported.append(done)
        return done == 4

    trial = trial_of(spec, 1e-3, asha={"grace_steps": 2})
    run_job("train", trial, world.inputs, tmp_path / "out", report)
    assert reported == [1, 2, 3, 4]
    pick_winner("search", SEARCH, {"trial-001": tmp_path / "out"}, tmp_path / "search")
    assert read(tmp_path / "search", "trials")[0]["ended"] == "halted"
    assert read(tmp_path / "search")["halted"] == 1
    summary = read(tmp_path / "out")
    assert (summary["steps"], summary["halted"]) == (4, True)
    assert summary["best_validation"] == max(curve(tmp_path / "out", "validation"))
    files = read_manifest(tmp_path / "out")["files"]
    assert not any(name.startswith(("model", "checkpoints")) for name in files)


def test_only_a_trial_is_halted(world, spec, tmp_path):
    run_job("train", spec, world.inputs, tmp_path / "out", lambda *_, **__: True)
    assert read(tmp_path / "out")["steps"] == 6
    assert "halted" not in read(tmp_path / "out")


def test_a_trial_trains_like_a_run_with_its_settings(world, spec, trials, tmp_path):
    alone = {**spec, "optimisation": {**spec["optimisation"], "lr": 1e-3}}
    run_job("train", alone, world.inputs, tmp_path / "out")
    assert digest(tmp_path / "out") == digest(trials["trial-002"])


@pytest.mark.parametrize("as_trial", [True, False])
def test_divergence_is_a_trials_result_and_a_runs_failure(
    world, spec, tmp_path, monkeypatch, as_trial
):
    import xsweep.trainer.loop

    monkeypatch.setattr(xsweep.trainer.loop.math, "isfinite", lambda value: False)
    if as_trial:
        run_job("train", trial_of(spec, 1e-3), world.inputs, tmp_path / "out")
        assert read(tmp_path / "out")["best_validation"] is None
        assert "the loss of step 0 is" in read(tmp_path / "out")["diverged"]
        read_manifest(tmp_path / "out")
    else:
        with pytest.raises(DivergenceError):
            run_job("train", spec, world.inputs, tmp_path / "out")


@pytest.fixture(scope="module")
def search(trials, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    pick_winner("search", SEARCH, trials, out)
    return out


def test_the_trial_with_the_best_validation_wins(search, trials):
    rows = read(search, "trials")
    assert [(row["trial"], row["settings"], row["ended"]) for row in rows] == [
        ("trial-001", {"lr": 1e-9}, "complete"),
        ("trial-002", {"lr": 1e-3}, "complete"),
        ("trial-003", {"lr": 0.99}, "diverged"),
    ]
    figures = {row["trial"]: row["validation"] for row in rows}
    assert figures["trial-001"] == read(trials["trial-001"])["best_validation"]
    winner = max(("trial-001", "trial-002"), key=lambda role: figures[role])
    assert read(search, "winner")["trial"] == winner
    assert (read(search)["diverged"], read(search)["halted"]) == (1, 0)
    assert digest(search / "winner") == digest(trials[winner])
    read_manifest(search)


def test_the_first_of_equals_wins(trials, tmp_path):
    twin = {f"trial-00{place}": trials["trial-002"] for place in (1, 2, 3)}
    pick_winner("search", SEARCH, twin, tmp_path / "out")
    assert read(tmp_path / "out", "winner")["trial"] == "trial-001"


def test_a_search_whose_trials_all_diverge_has_no_winner(trials, tmp_path):
    with pytest.raises(DataError, match="none of the 1 trials has a validation"):
        pick_winner("search", SEARCH, {"trial-001": trials["trial-003"]}, tmp_path / "out")


def with_winner(search: Path, folder: Path, **winner: object) -> Path:
    """A copy of the search with another winner's file."""
    shutil.copytree(search, folder)
    (folder / "winner.json").write_text(json.dumps(read(search, "winner") | winner))
    return folder


def test_a_run_takes_the_settings_and_records_their_source(world, spec, search, tmp_path):
    placed = with_winner(search, tmp_path / "search", settings={"lr": 5e-4})
    run_job(
        "train", {**spec, "searched": ["lr"]}, {**world.inputs, "search": placed}, tmp_path / "out"
    )
    provenance = read(tmp_path / "out", "provenance")
    assert provenance["spec"]["optimisation"]["lr"] == 5e-4
    assert provenance["spec"]["searched"] == []
    assert read(tmp_path / "out")["search"]["settings"] == {"lr": 5e-4}
    by_hand = {**spec, "optimisation": {**spec["optimisation"], "lr": 5e-4}}
    run_job("train", by_hand, world.inputs, tmp_path / "by-hand")
    assert digest(tmp_path / "out") == digest(tmp_path / "by-hand")


def test_a_run_equal_to_the_winning_trial_trains_nothing(world, spec, search, trials, tmp_path):
    steps = []
    run = {**spec, "searched": ["lr"]}
    inputs = {**world.inputs, "search": search}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").touch()
    run_job("train", run, inputs, tmp_path / "out", lambda done, *_, **__: steps.append(done))
    assert steps == []
    files = read_manifest(tmp_path / "out")["files"]
    assert {"model/model.safetensors", "metrics.jsonl"} <= files.keys()
    assert "half" not in files
    winner = read(search, "winner")["trial"]
    assert digest(tmp_path / "out") == digest(trials[winner])
    summary = read(tmp_path / "out")
    assert summary["search"]["trial"] == winner
    assert summary["best_validation"] == read(trials[winner])["best_validation"]
    assert read(tmp_path / "out", "provenance")["spec"]["trial"] is None


def test_another_seed_with_the_same_settings_is_trained(world, spec, search, tmp_path):
    steps = []
    run = {**spec, "searched": ["lr"], "seed": spec["seed"] + 1}
    inputs = {**world.inputs, "search": search}
    run_job("train", run, inputs, tmp_path / "out", lambda done, *_, **__: steps.append(done))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_winner_that_does_not_fit_the_run_is_a_configuration_error(world, spec, search, tmp_path):
    placed = with_winner(search, tmp_path / "search", settings={"warmup_steps": 50})
    run = {**spec, "searched": ["warmup_steps"]}
    with pytest.raises(ConfigError, match=r"does not fit this run: .*warmup_steps 50"):
        run_job("train", run, {**world.inputs, "search": placed}, tmp_path / "out")
    with pytest.raises(ConfigError, match="name its folder as `search`"):
        run_job("train", run, world.inputs, tmp_path / "out")

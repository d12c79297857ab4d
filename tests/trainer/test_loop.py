import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
from curves import ENGINES, curve, digest
from transformers import BertForSequenceClassification

from xsweep.errors import ConfigError, DivergenceError, Stopped
from xsweep.evaluator.data.files import write_manifest
from xsweep.trainer.checkpoint import list_checkpoints
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Scorer, slots
from xsweep.trainer.loop import _Training
from xsweep.trainer.train import run_job


def train(world, out, *, resume_from=(), report=None, objective="infonce", **optimisation):
    spec = world.spec(objective, **optimisation)
    run_job("train", spec, world.inputs, out, report=report, resume_from=resume_from)
    return out


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """One finished training for each engine, with dropout."""
    home = tmp_path_factory.mktemp("undisturbed")
    return {
        name: train(world, home / name, **settings, checkpoint_every_steps=3)
        for name, settings in ENGINES.items()
    }


def stop_at(step):
    def report(done, total, **_):
        if done == step:
            raise Stopped("asked to stop")

    return report


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """One training for each engine that stopped after step 1, went on and stopped after step 5."""
    home = tmp_path_factory.mktemp("stopped")
    for name, settings in ENGINES.items():
        first, second = home / "first" / name, home / name
        with pytest.raises(Stopped):
            train(world, first, **settings, report=stop_at(1))
        with pytest.raises(Stopped):
            train(world, second, **settings, report=stop_at(5), resume_from=[first])
        assert not (second / "manifest.json").exists()
    return home


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", ["zero-0", "zero-1", "zero-2"])
def test_deepspeed_gives_the_curves_of_plain_torch(undisturbed, name):
    for figure in ("loss", "grad_norm", "validation"):
        assert curve(undisturbed[name], figure) == pytest.approx(
            curve(undisturbed["plain"], figure), rel=1e-5
        )


@pytest.mark.parametrize("name", ENGINES)
def test_a_stopped_and_continued_training_ends_with_the_same_weights(
    world, undisturbed, stopped, tmp_path, name
):
    out = train(world, tmp_path, **ENGINES[name], resume_from=[stopped / name])
    assert digest(out) == digest(undisturbed[name])
    for figure in ("loss", "lr", "grad_norm", "validation"):
        assert curve(out, figure) == curve(undisturbed[name], figure)


@pytest.mark.parametrize("name", ["plain", "zero-1"])
def test_a_killed_training_loses_at_most_the_age_of_a_checkpoint(
    world, undisturbed, tmp_path, monkeypatch, name
):
    class Killed(BaseException):
        """Leaves no time to save, like SIGKILL."""

    def kill(done, total, **_):
        if done == 5:
            raise Killed

    monkeypatch.setattr("xsweep.trainer.loop.CHECKPOINT_S", 0.0)
    first = tmp_path / "first"
    with pytest.raises(Killed):
        train(world, first, **ENGINES[name], report=kill, checkpoint_every_steps=1000)
    assert [path.name for path in list_checkpoints([first / "checkpoints"])] == ["step-4", "step-3"]
    monkeypatch.undo()
    second = train(world, tmp_path / "second", **ENGINES[name], resume_from=[first])
    assert digest(second) == digest(undisturbed[name])


def test_a_checkpoint_is_written_neither_before_its_step_nor_before_its_age(world, tmp_path):
    def kill(done, total, **_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "first", report=kill, checkpoint_every_steps=1000)
    assert list_checkpoints([tmp_path / "first" / "checkpoints"]) == []


def test_a_training_can_resume_under_another_engine(world, undisturbed, stopped, tmp_path):
    out = train(world, tmp_path, **ENGINES["plain"], resume_from=[stopped / "zero-2"])
    assert curve(out) == pytest.approx(curve(undisturbed["plain"]), rel=1e-5)


def test_a_checkpoint_of_an_older_version_is_resumed(world, undisturbed, stopped, tmp_path):
    shutil.copytree(stopped / "plain", tmp_path / "first")
    newest = list_checkpoints([tmp_path / "first" / "checkpoints"])[0]
    progress = json.loads((newest / "progress.json").read_text())
    (newest / "progress.json").write_text(json.dumps({**progress, "joules": 12.5}))
    write_manifest(newest)
    out = train(world, tmp_path / "second", **ENGINES["plain"], resume_from=[tmp_path / "first"])
    assert digest(out) == digest(undisturbed["plain"])


def test_the_next_step_is_prepared_between_the_passes_and_the_update_of_this_one(
    world, undisturbed, tmp_path
):
    events: list[str] = []

    def watched(kind, name, event):
        method = getattr(kind, name)

        def call(self, *arguments, **named):
            value = method(self, *arguments, **named)
            events.append(event)
            return value

        return patch.object(kind, name, call)

    with (
        watched(_Training, "prepare", "prepared"),
        watched(PlainEngine, "backward", "computed"),
        watched(PlainEngine, "step", "updated"),
    ):
        with pytest.raises(Stopped):
            train(world, tmp_path / "first", **ENGINES["plain"], report=stop_at(4))
        out = train(world, tmp_path / "out", **ENGINES["plain"], resume_from=[tmp_path / "first"])
    assert digest(out) == digest(undisturbed["plain"])
    first, *steps = "".join(event[0] for event in events).split("u")
    assert re.fullmatch("pc+p", first)
    assert all(re.fullmatch("c+p", step) for step in steps[:3])
    assert re.fullmatch("pc+p", steps[3]), "prepared again after the stop"
    assert re.fullmatch("c+", steps[4]), "nothing is left to prepare"


def test_the_seed_determines_the_weights(world, tmp_path):
    outs = [tmp_path / name for name in ("first", "again", "other")]
    for out, seed in zip(outs, (12, 12, 13), strict=True):
        run_job("train", world.spec(steps=3) | {"seed": seed}, world.inputs, out)
    first, again, other = map(digest, outs)
    assert first == again != other


def test_a_training_runs_in_a_thread_of_a_long_lived_worker(world, undisturbed, tmp_path):
    with ThreadPoolExecutor(1) as worker:
        out = worker.submit(train, world, tmp_path / "out", **ENGINES["zero-0"]).result()
    assert digest(out) == digest(undisturbed["zero-0"])


ROOMY = {"dropout": False, "micro_batch_tokens": 100_000, "steps": 3}


@pytest.fixture(scope="module")
def roomy(world, tmp_path_factory):
    """A finished training that has memory enough."""
    return train(world, tmp_path_factory.mktemp("roomy"), **ROOMY)


def test_without_dropout_the_cut_into_micro_batches_changes_nothing(world, roomy, tmp_path):
    out = train(world, tmp_path, **ROOMY | {"micro_batch_tokens": 100})
    assert curve(out) == pytest.approx(curve(roomy), rel=1e-5)


def test_without_dropout_padding_changes_nothing(world, tmp_path):
    outs = [
        train(world, tmp_path / layout, dropout=False, layout=layout, steps=3)
        for layout in ("padded", "unpadded")
    ]
    for figure in ("loss", "grad_norm", "validation"):
        assert curve(outs[1], figure) == pytest.approx(curve(outs[0], figure), rel=1e-5, abs=1e-6)
    waste = [json.loads((out / "summary.json").read_text())["padding_waste"] for out in outs]
    assert waste[0] > waste[1] == 0


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_gradient_checkpointing_changes_no_number(world, tmp_path, layout):
    settings = {"layout": layout, "steps": 3}
    outs = [
        train(world, tmp_path / str(recompute), **settings, gradient_checkpointing=recompute)
        for recompute in (False, True)
    ]
    assert curve(outs[1]) == pytest.approx(curve(outs[0]), rel=1e-5)


def test_gradient_checkpointing_of_a_family_without_it_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="bert models have no gradient checkpointing: set grad"):
        train(world, tmp_path, gradient_checkpointing=True)


@pytest.mark.parametrize("objective", ["bce", "hinge", "margin_mse", "distill_ranknet", "adr_mse"])
def test_every_objective_lowers_its_training_loss(world, tmp_path, objective):
    settings = {"steps": 50, "lr": 5e-3, "warmup_steps": 1, "dropout": False}
    budgets = {"micro_batch_tokens": 2000, "forward_tokens": 500}
    spec = world.spec(objective, **settings, **budgets) | {"validation": None}
    run_job("train", spec, world.inputs, tmp_path)
    losses = curve(tmp_path)
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])


def test_the_best_checkpoint_is_the_result_and_patience_ends_a_training(world, tmp_path):
    spec = world.spec(steps=60, lr=0.05, warmup_steps=0)
    spec["validation"] |= {"every_steps": 2, "patience": 2}
    run_job("train", spec, world.inputs, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    values = curve(tmp_path / "out", "validation")
    assert summary["best_validation"] == max(values)
    assert summary["best_step"] == 2 * (values.index(max(values)) + 1)
    assert summary["steps"] == summary["best_step"] + 4 < 60


def test_a_loss_that_is_not_finite_stops_the_training_with_step_and_queries(world, tmp_path):
    huge = tmp_path / "teacher"
    huge.mkdir()
    lines = [f"q{q} Q0 d{q} 1 3e38 x\nq{q} Q0 d{q + 1} 2 -3e38 x\n" for q in range(24)]
    (huge / "scores.run").write_text("".join(lines))
    spec = world.spec("margin_mse")
    file = {"path": str(huge / "scores.run")}
    spec["teacher"] = {"signal": "scores", "source": {"type": "run", "file": file}, "negatives": 1}
    with pytest.raises(DivergenceError, match=r"loss of step 0 is inf; its queries: q\d+, q"):
        run_job("train", spec, world.inputs, tmp_path / "out")


def test_checkpoints_of_another_training_are_refused(world, tmp_path):
    with pytest.raises(Stopped):
        train(world, tmp_path / "first", report=stop_at(2))
    with pytest.raises(ConfigError, match="of another training"):
        train(world, tmp_path / "second", lr=2e-3, resume_from=[tmp_path / "first"])


@pytest.mark.parametrize("engine", ["plain", "zero-2"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_halves_the_micro_batches_of_the_same_global_batch(
    world, roomy, tmp_path, engine, where
):
    forward, failed = Scorer.forward, []

    def run_out(*_):
        failed.append(True)
        raise torch.OutOfMemoryError("a device of 200 tokens")

    def small_device(self, forwards, seeds=()):
        tokens = sum(slots(inputs) for inputs in forwards)
        is_too_large = torch.is_grad_enabled() and tokens > 200
        if is_too_large and where == "forward":
            run_out()
        logits = forward(self, forwards, seeds)
        if is_too_large:
            logits.register_hook(run_out)
        return logits

    with patch.object(Scorer, "forward", small_device):
        out = train(world, tmp_path, **ENGINES[engine], **ROOMY)
    assert failed
    assert curve(out) == pytest.approx(curve(roomy), rel=1e-5)
    assert curve(out, "grad_norm") == pytest.approx(curve(roomy, "grad_norm"), rel=1e-4)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["halved_budgets"][0][0] == 0
    assert summary["halved_budgets"][-1][1] <= 200
    assert json.loads((roomy / "summary.json").read_text())["halved_budgets"] == []


def test_an_update_that_runs_out_of_memory_halves_the_budget_of_the_next_attempt(world, tmp_path):
    error = torch.OutOfMemoryError("no memory")
    with patch.object(PlainEngine, "step", side_effect=error), pytest.raises(type(error)):
        train(world, tmp_path / "first", steps=3, micro_batch_tokens=400)
    out = train(world, tmp_path / "second", steps=3, resume_from=[tmp_path / "first"])
    assert json.loads((out / "summary.json").read_text())["halved_budgets"] == [[0, 200]]


def test_a_combination_of_losses_is_trained(world, tmp_path):
    def first_loss(name, weight, place):
        spec = world.spec("margin_mse", steps=1, warmup_steps=0)
        spec["objective"] = {"name": name, "plus": [{"name": "margin_mse", "weight": weight}]}
        run_job("train", spec, world.inputs, tmp_path / place)
        return curve(tmp_path / place)[0]

    alone = [first_loss(name, 1e-12, name) for name in ("infonce", "margin_mse")]
    together = first_loss("infonce", 0.1, "out")
    assert together == pytest.approx(alone[0] + 0.1 * alone[1], rel=1e-4)

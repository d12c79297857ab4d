import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.train import run_job
from xsweep import ConfigError, DivergenceError, Stopped

ENGINES = {
    "plain": {"engine": "plain"},
    "zero-0": {"engine": "deepspeed", "zero_stage": 0},
    "zero-1": {"engine": "deepspeed", "zero_stage": 1},
    "zero-2": {"engine": "deepspeed", "zero_stage": 2},
}


def curve(out, figure="loss"):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record[figure] for record in map(json.loads, lines) if figure in record]


def digest(out):
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


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
            raise Stopped("asked to leave")

    return report


@pytest.mark.parametrize("name", ["zero-0", "zero-1", "zero-2"])
def test_deepspeed_gives_the_curves_of_plain_torch(undisturbed, name):
    for figure in ("loss", "grad_norm", "validation"):
        assert curve(undisturbed[name], figure) == pytest.approx(
            curve(undisturbed["plain"], figure), rel=1e-5
        )


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_and_continued_training_ends_with_the_same_weights(
    world, undisturbed, tmp_path, name, step
):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(Stopped):
        train(world, first, **ENGINES[name], report=stop_at(step))
    assert not (first / "manifest.json").exists()
    train(world, second, **ENGINES[name], resume_from=[first])
    assert digest(second) == digest(undisturbed[name])
    for figure in ("loss", "lr", "grad_norm", "validation"):
        assert curve(second, figure) == curve(undisturbed[name], figure)


def test_a_killed_program_goes_on_from_its_last_checkpoint(world, undisturbed, tmp_path):
    # The process ends without a chance to clean up, as under kill -9.
    code = (
        "import json, os, sys; from trainer.train import run_job\n"
        "def report(done, total, **_):\n    if done == 5: os._exit(9)\n"
        "run_job('train', json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], report)"
    )
    spec = world.spec(**ENGINES["zero-0"], checkpoint_every_steps=3)
    inputs = {role: str(folder) for role, folder in world.inputs.items()}
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, json.dumps(spec), json.dumps(inputs), str(out)]
    assert subprocess.run(arguments, cwd=Path(__file__).parents[2], check=False).returncode == 9
    assert (out / "checkpoints" / "step-3" / "manifest.json").exists()
    train(world, out, **ENGINES["zero-0"], checkpoint_every_steps=3, resume_from=[out])
    assert digest(out) == digest(undisturbed["zero-0"])
    assert curve(out) == curve(undisturbed["zero-0"])


def test_a_training_may_continue_under_the_other_engine(world, undisturbed, tmp_path):
    with pytest.raises(Stopped):
        train(world, tmp_path / "first", **ENGINES["zero-2"], report=stop_at(5))
    out = train(world, tmp_path / "second", **ENGINES["plain"], resume_from=[tmp_path / "first"])
    assert curve(out) == pytest.approx(curve(undisturbed["plain"]), rel=1e-5)


def test_the_seed_decides_everything(world, undisturbed, tmp_path):
    again = train(world, tmp_path / "again", **ENGINES["plain"])
    assert digest(again) == digest(undisturbed["plain"])
    spec = world.spec(**ENGINES["plain"]) | {"seed": 13}
    run_job("train", spec, world.inputs, tmp_path / "other")
    assert curve(tmp_path / "other") != curve(again)


def test_a_training_runs_in_a_thread_of_a_long_lived_worker(world, undisturbed, tmp_path):
    with ThreadPoolExecutor(1) as worker:
        out = worker.submit(train, world, tmp_path / "out", **ENGINES["zero-0"]).result()
    assert digest(out) == digest(undisturbed["zero-0"])


def test_without_dropout_the_cut_into_micro_batches_changes_nothing(world, tmp_path):
    outs = [
        train(world, tmp_path / str(budget), dropout=False, micro_batch_tokens=budget)
        for budget in (100, 100_000)
    ]
    assert curve(outs[0]) == pytest.approx(curve(outs[1]), rel=1e-5)


@pytest.mark.parametrize("objective", ["bce", "hinge", "margin_mse", "distill_ranknet", "adr_mse"])
def test_every_objective_lowers_its_loss_on_what_it_sees(world, tmp_path, objective):
    optimisation = {"steps": 40, "lr": 1e-3, "warmup_steps": 1, "dropout": False}
    losses = curve(train(world, tmp_path / "out", objective=objective, **optimisation))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_best_checkpoint_is_the_result_and_patience_ends_a_training(world, tmp_path):
    spec = world.spec(steps=60, lr=0.05, warmup_steps=0)
    spec["validation"] |= {"every_steps": 2, "patience": 2}
    run_job("train", spec, world.inputs, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    values = curve(tmp_path / "out", "validation")
    assert summary["best_validation"] == max(values)
    assert summary["best_step"] == 2 * (values.index(max(values)) + 1)
    assert summary["steps"] == summary["best_step"] + 4 < 60


def test_a_loss_that_is_no_number_stops_with_step_and_queries(world, tmp_path):
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
    with pytest.raises(ConfigError, match="another training"):
        train(world, tmp_path / "second", lr=2e-3, resume_from=[tmp_path / "first"])


def test_gradient_checkpointing_changes_no_number(world, undisturbed, tmp_path):
    out = train(world, tmp_path / "out", gradient_checkpointing=True)
    assert curve(out) == pytest.approx(curve(undisturbed["plain"]), rel=1e-5)


TWO_RANKS = """
import json, sys
from pathlib import Path
from torch import distributed
from trainer.train import run_job

rank, home, jobs = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
distributed.init_process_group("gloo", f"file://{home}/rendezvous", rank=rank, world_size=2)
for name, job in jobs.items():
    run_job("train", *job, home / f"{name}-{rank}")
distributed.destroy_process_group()
"""


def test_two_ranks_give_the_curve_of_one_under_every_engine(world, undisturbed, tmp_path):
    inputs = {role: str(folder) for role, folder in world.inputs.items()}
    jobs = {name: (world.spec(**settings), inputs) for name, settings in ENGINES.items()}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path), json.dumps(jobs)],
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    for name in ENGINES:
        losses = curve(tmp_path / f"{name}-0")
        assert losses == pytest.approx(curve(undisturbed["plain"]), rel=1e-5)

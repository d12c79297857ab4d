"""Trainings on several ranks equal those on one, also when killed and resumed on fewer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curves import ENGINES, curve, digest
from safetensors.torch import load_file

from xsweep.trainer.checkpoint import Checkpoint, save_checkpoint

pytestmark = [pytest.mark.slow(2), pytest.mark.timeout(600)]

# Forks the ranks of each phase: starting them one by one takes minutes.
PROGRAM = """
import json, os, signal, socket, sys
from itertools import cycle
from pathlib import Path
import torch
from torch import distributed
from xsweep.trainer.checkpoint import load_common
from xsweep.trainer.distributed import process_group
from xsweep.trainer.forward import Scorer, slots
from xsweep.trainer.train import run_job

def small_device():
    # From now on a pass of more than 100 tokens runs out of memory, by turns before the last
    # gradient of its backward pass and in its forward pass.
    forward, turns = Scorer.forward, cycle([False, True])
    def exhausted(*_):
        raise torch.OutOfMemoryError("a device of 100 tokens")
    def limited(self, forwards, seeds=()):
        logits = forward(self, forwards, seeds)
        if torch.is_grad_enabled() and sum(map(slots, forwards)) > 100:
            if next(turns):
                exhausted()
            last = self.model.get_input_embeddings().weight
            logits.register_hook(lambda _: hooks.append(last.register_hook(exhausted)))
        elif hooks:
            hooks.pop().remove()
        return logits
    hooks = []
    Scorer.forward = limited

def work(phase, rank, size, jobs):
    rendezvous = f"file://{home}/rendezvous-{phase}"
    distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=size)
    for name, spec, earlier, killed_at in jobs:
        if "memory" in name and rank == 1:
            small_device()
        def report(done, total, **_):
            if done == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        # All ranks share a folder, as under torchrun.
        folders = [home / folder for folder in earlier]
        run_job("train", spec, inputs, home / name, report, resume_from=folders)

def meet_and_fail(rank):
    # The process lives on after its error, as a worker's does: until rank 0 has seen it.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    try:
        with process_group():
            found = load_common([home / f"checkpoints-{rank}"], torch.device("cpu"))
            (home / f"common-{rank}").write_text(str(found.progress["step"]))
            if rank:
                raise ValueError("broken")
            distributed.all_reduce(torch.ones(1))
    except Exception as error:
        (home / f"error-{rank}").write_text(str(error))
    (home / "seen").open("r" if rank else "w").close()

home = Path(sys.argv[1])
inputs, undisturbed, phases = map(json.loads, sys.argv[2:])
# What these import and prepare, every rank inherits.
for name, spec in undisturbed:
    run_job("train", spec, inputs, home / name)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.mkfifo(home / "seen")
failing = os.fork()
if not failing:
    meet_and_fail(1)
    os._exit(0)
meet_and_fail(0)
os.waitpid(failing, 0)
codes = []
for phase, (size, jobs) in enumerate(phases):
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            work(phase, rank, size, jobs)
            os._exit(0)
        children.append(child)
    codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
(home / "codes.json").write_text(json.dumps(codes))
"""

KILLED, DONE = -9, 0
KILLED_ENGINES = ("plain", "zero-1")


@pytest.fixture(scope="module")
def home(world, tmp_path_factory):
    """Folders of one training by ranks and engine: `killed` at step 5, resumed as `again`."""
    home = tmp_path_factory.mktemp("ranks")

    def job(name, engine, earlier=(), killed_at=None, **settings):
        spec = world.spec(**ENGINES[engine] | settings, checkpoint_every_steps=3)
        return name, spec, earlier, killed_at

    phases, expected = [], []

    def phase(size, *jobs, code=DONE):
        phases.append((size, jobs))
        expected.append([code] * size)

    def killed(size, engine):
        return job(f"{size} {engine} killed", engine, killed_at=5)

    def again(size, engine):
        return job(f"{size} {engine} again", engine, [f"{size} {engine} killed"])

    whole = {"dropout": False, "micro_batch_tokens": 500, "steps": 3}
    limited = [job(f"2 memory {engine}", engine, **whole) for engine in ENGINES]
    fewer = [job(f"fewer {engine}", engine, [f"2 {engine} killed"]) for engine in KILLED_ENGINES]
    phase(2, *(job(f"2 {engine}", engine) for engine in ENGINES), killed(2, "plain"), code=KILLED)
    phase(2, again(2, "plain"), killed(2, "zero-1"), code=KILLED)
    phase(2, again(2, "zero-1"), job("2 no dropout", "plain", **whole), *limited)
    phase(1, killed(1, "plain"), code=KILLED)
    phase(1, again(1, "plain"), killed(1, "zero-1"), code=KILLED)
    phase(1, again(1, "zero-1"), *fewer)
    phase(3, job("3 plain", "plain"), job("3 zero-2", "zero-2"))
    phase(8, job("8 plain", "plain"))
    for rank, steps in ((0, (3, 5)), (1, (3, 4))):
        for step in steps:
            save_checkpoint(home / f"checkpoints-{rank}", Checkpoint({}, {}, {}, {"step": step}))
    inputs = {role: str(folder) for role, folder in world.inputs.items()}
    undisturbed = [job(f"1 {engine}", engine)[:2] for engine in KILLED_ENGINES]
    arguments = map(json.dumps, (inputs, undisturbed, phases))
    command = [sys.executable, "-c", PROGRAM, home, *arguments]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    assert json.loads((home / "codes.json").read_text()) == expected
    return home


def summary(out):
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_give_the_curve_of_one_under_every_engine(home, name):
    for figure in ("loss", "grad_norm", "validation"):
        expected = curve(home / "1 plain", figure)
        assert curve(home / f"2 {name}", figure) == pytest.approx(expected, rel=1e-5)
    assert summary(home / f"2 {name}")["ranks"] == [[0, 2]]
    assert summary(home / f"2 {name}")["pairs"] == summary(home / "1 plain")["pairs"]


@pytest.mark.parametrize("name", ["2 plain", "3 plain", "3 zero-2", "8 plain"])
def test_several_ranks_give_the_curve_and_the_weights_of_one(home, name):
    assert curve(home / name) == pytest.approx(curve(home / "1 plain"), rel=1e-5)
    found, expected = (
        load_file(home / each / "model" / "model.safetensors") for each in (name, "1 plain")
    )
    for weight, value in expected.items():
        # A softmax ignores what it adds to all: the gradients of these biases are rounding alone.
        if not weight.endswith(("classifier.bias", "key.bias")):
            torch.testing.assert_close(found[weight], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", KILLED_ENGINES)
def test_killed_trainings_resume_to_the_same_weights(home, ranks, name):
    undisturbed, again = home / f"{ranks} {name}", home / f"{ranks} {name} again"
    kept = [path.name for path in (home / f"{ranks} {name} killed" / "checkpoints").iterdir()]
    assert kept == ["step-3"]
    assert digest(again) == digest(undisturbed)
    for figure in ("loss", "lr", "grad_norm", "validation"):
        assert curve(again, figure) == curve(undisturbed, figure)


@pytest.mark.parametrize("name", KILLED_ENGINES)
def test_a_training_of_two_ranks_can_resume_on_one_and_records_it(home, name):
    assert curve(home / f"fewer {name}") == pytest.approx(curve(home / "1 plain"), rel=1e-5)
    assert summary(home / f"fewer {name}")["ranks"] == [[0, 2], [3, 1]]


@pytest.mark.parametrize("name", ENGINES)
def test_all_ranks_halve_the_budget_if_one_runs_out_of_memory(home, name):
    for figure in ("loss", "grad_norm", "validation"):
        expected = curve(home / "2 no dropout", figure)
        assert curve(home / f"2 memory {name}", figure) == pytest.approx(expected, rel=1e-4)
    assert summary(home / "2 no dropout")["halved_budgets"] == []
    halved = summary(home / f"2 memory {name}")["halved_budgets"]
    # In a backward pass, then in a forward pass of step 0.
    assert [step for step, _ in halved] == [0, 0]
    assert halved[0][1] > 100 >= halved[1][1]


def test_ranks_that_find_different_checkpoints_take_the_furthest_that_all_have(home):
    assert [(home / f"common-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]


def test_a_rank_that_fails_ends_the_group_at_once(home):
    assert (home / "error-1").read_text() == "broken"
    lost = (home / "error-0").read_text()
    assert "gloo/transport" in lost or "by peer" in lost, lost

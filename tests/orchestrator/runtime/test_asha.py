"""ASHA over the job table: decisions by hand, by Tune itself, and the same after a restart."""

import json
import random
from pathlib import Path

import pytest
from job_table import identity, new_job, submit, take
from sqlalchemy import Engine

from xsweep.db.check import check
from xsweep.db.events import history, load_trials
from xsweep.db.jobs import Claim, NewJob
from xsweep.orchestrator.runtime.asha import Pruner
from xsweep.orchestrator.storage.store import Store

TRIALS = 8
ASHA = {"grace_steps": 10, "reduction": 2.0}


def trial(name: str) -> NewJob:
    spec = {"optimisation": {"steps": 80}, "trial": {"asha": ASHA}}
    return NewJob(identity=identity(name), kind="train", name=name, spec=spec)


@pytest.fixture
def claims(engine: Engine) -> list[Claim]:
    """Trials of one search, all claimed."""
    names = [f"trial {number}" for number in range(TRIALS)]
    submit(engine, [*map(trial, names), new_job("search", *names, kind="search")])
    return [take(engine) for _ in names]


def measured(store: Path, claim: Claim, *points: tuple[int, float]) -> str:
    """Append validations to the attempt's metrics; gives its folder."""
    folder = f"jobs/{claim.name}/attempt-{claim.token}"
    (store / folder).mkdir(parents=True, exist_ok=True)
    with (store / folder / "metrics.jsonl").open("a") as file:
        for step, validation in points:
            file.write(json.dumps({"step": step - 1, "loss": 1.0}) + "\n")
            file.write(json.dumps({"step": step, "loss": 1.0, "validation": validation}) + "\n")
    return folder


def test_the_worse_half_ends_at_each_rung(
    engine: Engine, claims: list[Claim], tmp_path: Path
) -> None:
    pruner = Pruner(engine, Store(tmp_path))
    # Rungs at 10, 20 and 40 of 80 steps. The first has nothing to compare with; afterwards whoever
    # is below the median of those before ends: 0.4 < 0.5; 0.6 >= 0.45; 0.45 < 0.5; 0.3; 0.7.
    values = [0.5, 0.4, 0.6, 0.45, 0.3, 0.7]
    found = [
        pruner.ends(claim, measured(tmp_path, claim, (10, value)))
        for claim, value in zip(claims, values, strict=False)
    ]
    assert found == [False, True, False, True, True, False]
    # a decision stays, and a trial that continues is not asked again at the same rung
    assert pruner.ends(claims[1], measured(tmp_path, claims[1], (15, 0.99)))
    assert not pruner.ends(claims[0], measured(tmp_path, claims[0], (15, 0.01)))
    assert not pruner.ends(claims[0], measured(tmp_path, claims[0], (20, 0.8)))
    assert pruner.ends(claims[2], measured(tmp_path, claims[2], (20, 0.7)))
    rungs = [event.detail for event in history(engine) if event.kind == "rung"]
    assert [each["ends"] for each in rungs] == [*found, False, True]
    assert rungs[-1] == {"step": 20, "validation": 0.7, "ends": True}
    assert check(engine) == []


def test_decisions_are_those_of_tune_whenever_controllers_are_replaced(
    engine: Engine, claims: list[Claim], tmp_path: Path
) -> None:
    from types import SimpleNamespace

    from ray.tune.schedulers import AsyncHyperBandScheduler

    tune = AsyncHyperBandScheduler(
        "step", "validation", "max", max_t=80, grace_period=10, reduction_factor=2,
        stop_last_trials=False,
    )  # fmt: skip
    dice = random.Random(3)
    pruner = Pruner(engine, Store(tmp_path))
    steps = dict.fromkeys(range(TRIALS), 0)
    for number in steps:
        tune.on_trial_add(None, SimpleNamespace(trial_id=str(number)))
    ended: set[int] = set()
    while running := [each for each in steps if each not in ended and steps[each] < 75]:
        number = dice.choice(running)
        steps[number] += 5
        value = round(dice.random(), 3)
        result = {"step": steps[number], "validation": value}
        decision = tune.on_trial_result(None, SimpleNamespace(trial_id=str(number)), result)
        if dice.random() < 0.3:
            pruner = Pruner(engine, Store(tmp_path))  # the old one was killed
        claim = claims[number]
        ends = pruner.ends(claim, measured(tmp_path, claim, (steps[number], value)))
        assert ends == (decision == "STOP"), (number, steps[number], value)
        if ends:
            ended.add(number)
    assert 0 < len(ended) < TRIALS
    again = Pruner(engine, Store(tmp_path))
    for number, claim in enumerate(claims):
        assert again.ends(claim, measured(tmp_path, claim)) == (number in ended)


def test_an_incomplete_line_is_read_once_it_is_complete(
    engine: Engine, claims: list[Claim], tmp_path: Path
) -> None:
    pruner = Pruner(engine, Store(tmp_path))
    assert not pruner.ends(claims[0], measured(tmp_path, claims[0], (10, 0.9)))
    folder = measured(tmp_path, claims[1])
    path = tmp_path / folder / "metrics.jsonl"
    path.write_text('{"step": 10, "valida')
    assert not pruner.ends(claims[1], folder)
    path.write_text('{"step": 10, "validation": 0.1}\n')
    assert pruner.ends(claims[1], folder)


def test_a_training_that_is_no_trial_is_never_pruned(engine: Engine, tmp_path: Path) -> None:
    submit(engine, [new_job("a")])
    claim = take(engine)
    assert not Pruner(engine, Store(tmp_path)).ends(claim, measured(tmp_path, claim, (10, 0.0)))
    assert [event.kind for event in history(engine, job_id=claim.job_id)] == ["claimed"]


def test_a_trial_of_two_searches_is_judged_among_the_newer_ones_trials(engine: Engine) -> None:
    names = ["trial 0", "trial 1", "trial 2"]
    submit(engine, [*map(trial, names[:2]), new_job("search", *names[:2], kind="search")])
    submit(engine, [*map(trial, names), new_job("larger", *names, kind="search")], name="second")
    ids = {claim.name: claim.job_id for claim in (take(engine) for _ in names)}
    assert load_trials(engine, ids["trial 0"]) == sorted(ids.values())

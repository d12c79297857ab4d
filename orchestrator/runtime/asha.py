"""Hyper-parameter search by Ray Tune: samples of a space, and early stopping of trials by ASHA.

Trials are jobs, and both they and controllers come and go. So the validation of a trial at a rung,
and the decision about it, are events of its job, from which a new controller rebuilds Tune's
scheduler; a rung is passed to it once. A trial continues while it is decided about.
"""

import json
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from xsweep.db.events import Rung, load_rungs, load_trials, record_rung
from xsweep.db.jobs import Claim
from xsweep.orchestrator.grid.schema import Range
from xsweep.orchestrator.storage.store import Store
from xsweep.trainer.specs import OptimisationSpec

if TYPE_CHECKING:
    from ray.tune.schedulers import AsyncHyperBandScheduler

log = logging.getLogger("xsweep")

SIGNIFICANT_DIGITS = 4
"""Precision of a drawn number: `2.345e-05` can be read and copied into a grid file."""

DRAWS_PER_SAMPLE = 1_000
"""Attempts to draw a sample that differs from the others."""


class _Bracket:
    """The trials of one search."""

    def __init__(self, scheduler: "AsyncHyperBandScheduler", rungs: list[float]) -> None:
        self.scheduler, self.rungs = scheduler, rungs
        self.passed: dict[int, int] = {}
        """Rungs that each trial has passed."""
        self.stopped: set[int] = set()

    def at_new_rung(self, trial: int, step: int) -> bool:
        """Return whether the step is at or behind a rung that the trial has not passed."""
        return self._rungs_until(step) > self.passed.get(trial, 0)

    def decide(self, trial: int, step: int, validation: float) -> bool:
        """Pass a trial's validation at a rung to the scheduler. True: the trial is to stop."""
        tuned: Any = SimpleNamespace(trial_id=str(trial))  # all that the scheduler reads
        if trial not in self.passed:
            self.scheduler.on_trial_add(None, tuned)
        self.passed[trial] = self._rungs_until(step)
        result = {"step": step, "validation": validation}
        decision = self.scheduler.on_trial_result(None, tuned, result)
        return decision == self.scheduler.STOP

    def _rungs_until(self, step: int) -> int:
        return sum(step >= rung for rung in self.rungs)


def _open_bracket(asha: dict[str, Any], steps: int) -> _Bracket:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    rung, reduction = asha["grace_steps"], asha["reduction"]
    rungs = []
    while rung < steps:
        rungs.append(rung)
        rung *= reduction
    scheduler = AsyncHyperBandScheduler(
        time_attr="step",
        metric="validation",
        mode="max",
        max_t=steps,
        grace_period=asha["grace_steps"],
        reduction_factor=reduction,
        stop_last_trials=False,
    )
    return _Bracket(scheduler, rungs)


class Pruner:
    """Decides which trials stop early; one per controller."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine, self.store = engine, store
        self._brackets: dict[int, _Bracket] = {}
        """By trial; those of one search share theirs."""
        self._read_bytes: dict[tuple[int, int], int] = {}
        """Bytes of an attempt's metrics that were read, by job and token."""

    def ends(self, job: Claim, folder: str) -> bool:
        """Read an attempt's new validations, and return whether it is to stop.

        False for a job that is no trial of a search with `asha`.
        """
        trial = job.spec.get("trial") or {}
        if not trial.get("asha"):
            return False
        bracket = self._bracket(job, trial["asha"])
        for record in self._new_validations(job, folder):
            step, validation = int(record["step"]), float(record["validation"])
            if not bracket.at_new_rung(job.job_id, step):
                continue
            ends = bracket.decide(job.job_id, step, validation)
            record_rung(self.engine, Rung(job.job_id, step, validation, ends), job.token)
            if ends:
                bracket.stopped.add(job.job_id)
                log.info("pruned    %s after step %d at %.4f", job.name, step, validation)
        return job.job_id in bracket.stopped

    def _bracket(self, job: Claim, asha: dict[str, Any]) -> _Bracket:
        if job.job_id not in self._brackets:
            trials = load_trials(self.engine, job.job_id) or [job.job_id]
            bracket = _open_bracket(asha, job.spec["optimisation"]["steps"])
            for rung in load_rungs(self.engine, trials):
                bracket.decide(rung.job_id, rung.step, rung.validation)
                if rung.ends:
                    bracket.stopped.add(rung.job_id)
            self._brackets |= dict.fromkeys(trials, bracket)
        return self._brackets[job.job_id]

    def _new_validations(self, job: Claim, folder: str) -> list[dict[str, Any]]:
        """Return the records written since the last call; an incomplete line waits."""
        attempt = (job.job_id, job.token)
        try:
            with self.store.fetch_file(f"{folder}/metrics.jsonl").open("rb") as file:
                file.seek(self._read_bytes.get(attempt, 0))
                text = file.read()
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._read_bytes[attempt] = self._read_bytes.get(attempt, 0) + len(complete)
        lines = [line for line in complete.splitlines() if b'"validation"' in line]
        return [json.loads(line) for line in lines]


def draw(space: Mapping[str, Range], samples: int, seed: int) -> list[dict[str, Any]]:
    """Draw distinct samples of a search space; fewer than `samples` where the space has no more.

    Deterministic in its arguments; the order of the settings does not matter, and a larger number
    of samples begins with those of a smaller one.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    domains = {name: _domain(name, values) for name, values in sorted(space.items())}
    found: list[dict[str, Any]] = []
    for _ in range(samples * DRAWS_PER_SAMPLE):
        drawn = {key: _readable(each.sample(random_state=random)) for key, each in domains.items()}
        if drawn not in found:
            found.append(drawn)
        if len(found) == samples:
            break
    return found


def _domain(name: str, values: Range) -> Any:
    """Return Ray Tune's domain; integer settings draw integers, both bounds included."""
    from ray import tune

    if values.choice is not None:
        return tune.choice(list(values.choice))
    low, high = values.uniform or values.loguniform or (0.0, 1.0)
    if OptimisationSpec.model_fields[name].annotation is int:
        draw_integer = tune.randint if values.uniform else tune.lograndint
        return draw_integer(round(low), round(high) + 1)
    return tune.uniform(low, high) if values.uniform else tune.loguniform(low, high)


def _readable(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value.item() if hasattr(value, "item") else value

"""Ending trials of a search early: Ray Tune's ASHA scheduler decides, over the job table.

Trials are jobs that come and go, and so do controllers; so what a trial measured at a rung, and
what was decided, are events of its job, and a new controller tells the scheduler all of them. The
scheduler never hears of a rung twice. A trial trains on while it is decided about.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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


class _Trial(NamedTuple):
    """All that the scheduler wants to know of a trial."""

    trial_id: str


@dataclass
class _Bracket:
    """The trials of one search."""

    scheduler: "AsyncHyperBandScheduler"
    milestones: list[float]
    reached: dict[int, int] = field(default_factory=dict)
    """By trial, how many milestones it has passed."""
    ended: set[int] = field(default_factory=set)


class Pruner:
    """Says which trials are to end; one per controller."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine, self.store = engine, store
        self._brackets: dict[int, _Bracket] = {}
        """By trial; those of one search share theirs."""
        self._read: dict[tuple[int, int], int] = {}
        """By attempt, the bytes of its metrics that have been looked at."""

    def ends(self, job: Claim, folder: str) -> bool:
        """Whether the attempt is to end now: never, unless it is a trial that may.

        Looks for new validations in its folder and decides about each at a new rung.
        """
        trial = job.spec.get("trial") or {}
        if not trial.get("asha"):
            return False
        bracket = self._bracket(job, trial["asha"])
        for record in self._news(job, folder):
            self._hear(bracket, job, record)
        return job.job_id in bracket.ended

    def _bracket(self, job: Claim, asha: dict[str, Any]) -> _Bracket:
        if job.job_id not in self._brackets:
            peers = load_trials(self.engine, job.job_id) or [job.job_id]
            bracket = _open_bracket(asha, job.spec["optimisation"]["steps"])
            for rung in load_rungs(self.engine, peers):
                _tell(bracket, rung.job_id, rung.step, rung.validation)
                if rung.ends:
                    bracket.ended.add(rung.job_id)
            self._brackets |= dict.fromkeys(peers, bracket)
        return self._brackets[job.job_id]

    def _news(self, job: Claim, folder: str) -> list[dict[str, Any]]:
        """The validations that were written since the last look, whole lines only."""
        attempt = (job.job_id, job.token)
        try:
            with self.store.fetch_file(f"{folder}/metrics.jsonl").open("rb") as file:
                file.seek(self._read.get(attempt, 0))
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read[attempt] = self._read.get(attempt, 0) + len(whole)
        lines = [line for line in whole.splitlines() if b'"validation"' in line]
        return [json.loads(line) for line in lines]

    def _hear(self, bracket: _Bracket, job: Claim, record: dict[str, Any]) -> None:
        step, validation = int(record["step"]), float(record["validation"])
        if not _passes(bracket, job.job_id, step):
            return
        ends = _tell(bracket, job.job_id, step, validation)
        if ends:
            bracket.ended.add(job.job_id)
        record_rung(self.engine, Rung(job.job_id, step, validation, ends), job.token)
        if ends:
            log.info("ends      %s after step %d: %.4f is too little", job.name, step, validation)


def _open_bracket(asha: dict[str, Any], steps: int) -> _Bracket:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    grace, reduction = asha["grace_steps"], asha["reduction"]
    milestones = []
    while grace < steps:
        milestones.append(grace)
        grace *= reduction
    scheduler = AsyncHyperBandScheduler(
        time_attr="step",
        metric="validation",
        mode="max",
        max_t=steps,
        grace_period=asha["grace_steps"],
        reduction_factor=reduction,
        stop_last_trials=False,
    )
    return _Bracket(scheduler, milestones)


def _passes(bracket: _Bracket, trial: int, step: int) -> bool:
    """Whether the step is the first at or behind a milestone that the trial had not passed."""
    return sum(step >= each for each in bracket.milestones) > bracket.reached.get(trial, 0)


def _tell(bracket: _Bracket, trial: int, step: int, validation: float) -> bool:
    """Tell the scheduler of a trial at a rung; whether it wants the trial to end."""
    who: Any = _Trial(str(trial))
    if trial not in bracket.reached:
        bracket.scheduler.on_trial_add(None, who)  # type: ignore[arg-type]  # it looks at nothing
    bracket.reached[trial] = sum(step >= each for each in bracket.milestones)
    result = {"step": step, "validation": validation}
    decision = bracket.scheduler.on_trial_result(None, who, result)  # type: ignore[arg-type]
    return decision == bracket.scheduler.STOP


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
        drawn = {
            name: _readable(domain.sample(random_state=random)) for name, domain in domains.items()
        }
        if drawn not in found:
            found.append(drawn)
        if len(found) == samples:
            break
    return found


def _domain(name: str, values: Range) -> Any:
    """Ray Tune's domain; integer settings draw integers, both bounds included."""
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

"""The `search:` blocks of a grid: which trials there are, and which cells take a winner's settings.

Trials are drawn when the grid is planned, as Ray Tune draws them, and are ordinary jobs: rows with
attempts, leases, logs and retries, so that a search that was killed goes on with what is missing. A
job `search` behind them picks the winner; a run whose settings it chooses has it as a parent, so
that the run's identity is that of the whole search.
"""

from itertools import product
from typing import Any, NamedTuple

from xsweep.orchestrator.grid.cells import Cell, Layers, matches
from xsweep.orchestrator.grid.resolve import Objectives, References, Step
from xsweep.orchestrator.grid.schema import Search, TrainingSettings
from xsweep.orchestrator.grid.yaml import Where, nearest
from xsweep.orchestrator.runtime.asha import draw
from xsweep.trainer.specs import OptimisationSpec, SearchSpec, TrialSpec

FIXED = ("steps", "engine", "zero_stage")
"""Settings of `optimisation` that all trials share: they are compared at equal steps."""


class Tuned(NamedTuple):
    """One search: a cell, in its first seed, and the settings of its trials."""

    place: int
    """Of its rule in the grid file."""
    cell: Cell
    step: Step
    trials: tuple[tuple[dict[str, Any], TrainingSettings], ...]
    """What was drawn, and all settings with it."""
    spec: SearchSpec
    trial: TrialSpec

    @property
    def where(self) -> Where:
        """The rule's place in the grid file."""
        return ("search", self.place)

    @property
    def given(self) -> tuple[Where, dict[str, Any]]:
        """What stands for the winner's settings before it is known: those of the first trial."""
        return (*self.where, "space"), self.trials[0][0]


def plan_searches(
    refs: References, layers: Layers, objectives: Objectives, cells: list[Cell], measure: str | None
) -> dict[Cell, Tuned]:
    """By cell, the search whose winner gives its settings; ConfigError at what is wrong.

    `measure` is the one that trainings are validated by; a search needs one.
    """
    found: dict[Cell, Tuned] = {}
    for place, rule in enumerate(refs.grid.search):
        where: Where = ("search", place)
        if measure is None:
            message = "a search compares validations: the grid needs `validation:`"
            raise refs.source.error(where, message)
        _check_space(refs, where, rule)
        tuned: dict[tuple[str, str, str], Tuned] = {}
        for cell in [cell for cell in cells if matches(rule.match, cell)]:
            if _axes(cell) not in tuned:
                tuned[_axes(cell)] = _tune(refs, layers, objectives, place, cell, measure)
        if not tuned:
            raise refs.source.error((*where, "match"), "no cell of the grid matches")
        if rule.apply and len(tuned) > 1:
            message = f"to apply a winner to others, match one cell: this tunes {len(tuned)}"
            raise refs.source.error((*where, "match"), message)
        takers = [cell for cell in cells if matches(rule.apply or rule.match, cell)]
        if not takers:
            raise refs.source.error((*where, "apply"), "no cell of the grid takes the settings")
        for cell in takers:
            _one_step(refs, where, objectives, cell)
            found[cell] = next(iter(tuned.values())) if rule.apply else tuned[_axes(cell)]
    return found


def _axes(cell: Cell) -> tuple[str, str, str]:
    return cell.backbone.name, cell.objective, cell.teacher


def _check_space(refs: References, where: Where, rule: Search) -> None:
    known = [name for name in OptimisationSpec.model_fields if name not in FIXED]
    for name in rule.space:
        if name not in known:
            message = f"{name!r} cannot be searched: {nearest(name, known)}"
            raise refs.source.error((*where, "space", name), message, at_key=True)
    if rule.samples is None:
        for name, values in rule.space.items():
            if values.choice is None:
                message = "there is no end of its values: give `samples`, or a `choice`"
                raise refs.source.error((*where, "space", name), message)
    for name in rule.training:
        if name not in TrainingSettings.model_fields:
            message = f"unknown key {name!r}: {nearest(name, TrainingSettings.model_fields)}"
            raise refs.source.error((*where, "training", name), message, at_key=True)


def _one_step(refs: References, where: Where, objectives: Objectives, cell: Cell) -> Step:
    steps = objectives.steps(cell.objective, cell.teacher)
    if len(steps) > 1:
        message = f"{cell.objective} has stages, which share no settings: search them by hand"
        raise refs.source.error(where, message)
    return steps[0]


def _tune(
    refs: References,
    layers: Layers,
    objectives: Objectives,
    place: int,
    cell: Cell,
    measure: str,
) -> Tuned:
    where: Where = ("search", place)
    rule = refs.grid.search[place]
    step = _one_step(refs, where, objectives, cell)
    trials = tuple(
        (
            drawn,
            layers.of(
                cell, step, ((*where, "training"), rule.training), ((*where, "space"), drawn)
            ),
        )
        for drawn in _samples(refs, where, rule)
    )
    steps = trials[0][1].steps
    if rule.asha and rule.asha.grace_steps >= steps:
        message = f"the trials have {steps} steps: none could end before them"
        raise refs.source.error((*where, "asha", "grace_steps"), message)
    spec = SearchSpec(settings=tuple(sorted(rule.space)), measure=measure)
    return Tuned(place, cell, step, trials, spec, TrialSpec(asha=rule.asha))


def _samples(refs: References, where: Where, rule: Search) -> list[dict[str, Any]]:
    """The settings of each trial, every one once; the same for the same space, number and seed."""
    names = sorted(rule.space)
    if rule.samples is None:
        choices = product(*(rule.space[name].choice or () for name in names))
        drawn = [dict(zip(names, values, strict=True)) for values in choices]
        samples = [each for i, each in enumerate(drawn) if each not in drawn[:i]]
    else:
        samples = draw(rule.space, rule.samples, rule.seed)
        if len(samples) < rule.samples:
            message = f"the space has only {len(samples)} combinations, not {rule.samples}"
            raise refs.source.error((*where, "samples"), message)
    if len(samples) < 2:
        raise refs.source.error((*where, "space"), "one trial is no search: give more choices")
    return samples

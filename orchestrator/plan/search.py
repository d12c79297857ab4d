"""Searches of a grid: the trials of each `search:` block, and the cells that take its winner.

Trials are drawn when the grid is planned and are ordinary jobs, so an interrupted search resumes
with its missing trials. A job `search` after them picks the winner; a run whose settings it chooses
has it as a parent, so the run's identity contains the whole search.
"""

from itertools import product
from typing import Any, NamedTuple

from xsweep.orchestrator.grid.cells import Cell, Layers, matches
from xsweep.orchestrator.grid.resolve import References, Step, steps_of
from xsweep.orchestrator.grid.schema import Search, TrainingSettings
from xsweep.orchestrator.grid.yaml import Where, nearest
from xsweep.orchestrator.runtime.asha import draw
from xsweep.trainer.specs import OptimisationSpec, SearchSpec, TrialSpec

FIXED = ("steps", "engine", "zero_stage")
"""Settings of `optimisation` that all trials share: trials are compared at equal steps."""


class PlannedSearch(NamedTuple):
    """One search: a cell in its first seed, and the settings of its trials."""

    cell: Cell
    step: Step
    trials: tuple[tuple[dict[str, Any], TrainingSettings], ...]
    """Drawn settings of each trial, and all its settings."""
    spec: SearchSpec
    trial: TrialSpec
    placeholder: tuple[Where, dict[str, Any]]
    """Settings until the winner is known: those of the first trial, at their path in the grid."""


def plan_searches(refs: References, layers: Layers, cells: list[Cell]) -> dict[Cell, PlannedSearch]:
    """The search that chooses the settings of each cell; ConfigError for an invalid one."""
    found: dict[Cell, PlannedSearch] = {}
    for place, rule in enumerate(refs.grid.search):
        where: Where = ("search", place)
        _check_space(refs, where, rule)
        searches: dict[tuple[str, str, str], PlannedSearch] = {}
        for cell in [cell for cell in cells if matches(rule.match, cell)]:
            if _axes(cell) not in searches:
                searches[_axes(cell)] = _search(refs, layers, where, rule, cell)
        if not searches:
            raise refs.source.error((*where, "match"), "no cell of the grid matches")
        if rule.apply and len(searches) > 1:
            message = f"to apply a winner to others, match one cell: this tunes {len(searches)}"
            raise refs.source.error((*where, "match"), message)
        takers = [cell for cell in cells if matches(rule.apply or rule.match, cell)]
        if not takers:
            raise refs.source.error((*where, "apply"), "no cell of the grid takes the settings")
        for cell in takers:
            _only_step(refs, where, cell)
            found[cell] = next(iter(searches.values())) if rule.apply else searches[_axes(cell)]
    return found


def _axes(cell: Cell) -> tuple[str, str, str]:
    return cell.backbone.name, cell.objective, cell.teacher


def _check_space(refs: References, where: Where, rule: Search) -> None:
    source = refs.source
    if refs.grid.validation is None:
        raise source.error(where, "a search compares validations: the grid needs `validation:`")
    searchable = [name for name in OptimisationSpec.model_fields if name not in FIXED]
    for name, values in rule.space.items():
        here = (*where, "space", name)
        if name not in searchable:
            message = f"{name!r} cannot be searched: {nearest(name, searchable)}"
            raise source.error(here, message, at_key=True)
        if rule.samples is None and values.choice is None:
            message = "a range has no end of values: give `samples`, or a `choice`"
            raise source.error(here, message)


def _only_step(refs: References, where: Where, cell: Cell) -> Step:
    steps = steps_of(refs, cell.objective, cell.teacher)
    if len(steps) > 1:
        message = f"{cell.objective} has stages, which share no settings: search them one by one"
        raise refs.source.error(where, message)
    return steps[0]


def _search(
    refs: References, layers: Layers, where: Where, rule: Search, cell: Cell
) -> PlannedSearch:
    assert refs.grid.validation
    step = _only_step(refs, where, cell)
    space: Where = (*where, "space")
    fixed = (*where, "training"), rule.training
    samples = _samples(refs, where, rule)
    settings = [layers.settings(cell, step, fixed, (space, drawn)) for drawn in samples]
    steps = settings[0].steps
    if rule.asha and rule.asha.grace_steps >= steps:
        message = f"the trials have {steps} steps: none could end before them"
        raise refs.source.error((*where, "asha", "grace_steps"), message)
    return PlannedSearch(
        cell=cell,
        step=step,
        trials=tuple(zip(samples, settings, strict=True)),
        spec=SearchSpec(settings=tuple(sorted(rule.space)), measure=refs.grid.validation.measure),
        trial=TrialSpec(asha=rule.asha),
        placeholder=(space, samples[0]),
    )


def _samples(refs: References, where: Where, rule: Search) -> list[dict[str, Any]]:
    """The settings of each trial, without duplicates, determined by space, number and seed."""
    if rule.samples is None:
        names = sorted(rule.space)
        choices = product(*(rule.space[name].choice or () for name in names))
        drawn = [dict(zip(names, values, strict=True)) for values in choices]
        samples = [each for place, each in enumerate(drawn) if each not in drawn[:place]]
    else:
        samples = draw(rule.space, rule.samples, rule.seed)
        if len(samples) < rule.samples:
            message = f"the space has only {len(samples)} combinations, not {rule.samples}"
            raise refs.source.error((*where, "samples"), message)
    if len(samples) < 2:
        raise refs.source.error((*where, "space"), "one trial is no search: give more choices")
    return samples

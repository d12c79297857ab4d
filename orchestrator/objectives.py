"""What the entries of `objectives:` stand for: losses, sums of losses, and stages of these."""

from typing import Any, NamedTuple

from orchestrator.entries import Objective, Stage
from orchestrator.references import References
from orchestrator.yamlfile import Where, nearest
from trainer.objectives import OBJECTIVES, Signal
from trainer.specs import ObjectiveSpec, TermSpec


class Step(NamedTuple):
    """One training on the way to a cell's model; all but the last are its stages before."""

    objective: str
    """An entry of the grid, or a loss."""
    teacher: str
    spec: ObjectiveSpec
    settings: dict[str, Any]
    """Training settings of the stage itself."""
    where: Where


class Objectives:
    """Gives the grid's objectives their meaning; errors stand at their place in the file."""

    def __init__(self, refs: References) -> None:
        self.refs, self.grid = refs, refs.grid

    def check(self) -> None:
        """Check every entry: its loss, its parameters, its teachers, its stages."""
        list(OBJECTIVES)  # raises where an installed package takes the name of another loss
        for name, entry in self.grid.objectives.items():
            where: Where = ("objectives", name)
            if not entry.stages:
                self.loss(name)
                self.refs.names((*where, "teachers"), entry.teachers or (), self.grid.teachers)
                continue
            self._check_stages(where, entry)

    def _check_stages(self, where: Where, entry: Objective) -> None:
        others = sorted(entry.model_fields_set - {"stages"}) + sorted(entry.training)
        if others:
            message = f"{others[0]!r} belongs into a stage: an objective with stages has only them"
            raise self.refs.source.error((*where, others[0]), message, at_key=True)
        for place, stage in enumerate(entry.stages):
            here = (*where, "stages", place)
            spec = self._stage_loss(here, stage)
            self.refs.names((*here, "teachers"), stage.teachers, self.grid.teachers)
            is_last = place == len(entry.stages) - 1
            if len(stage.teachers) > 1 and not is_last:
                message = "a stage before the last has one teacher: list several in the last one"
                raise self.refs.source.error((*here, "teachers"), message)
            for teacher in () if is_last else stage.teachers:
                signal = self.grid.teachers[teacher].signal
                if signal not in spec.signals:
                    needed = " or ".join(sorted(spec.signals))
                    message = f"{stage.objective} learns from {needed}; {teacher} gives {signal}"
                    raise self.refs.source.error((*here, "teachers"), message)

    def teachers(self, name: str) -> tuple[str, ...] | None:
        """The teachers that an entry lists for its cells; None: all."""
        entry = self.grid.objectives[name]
        return entry.stages[-1].teachers if entry.stages else entry.teachers

    def signals(self, name: str) -> frozenset[Signal]:
        """What may teach an entry, in its last stage where it has several."""
        entry = self.grid.objectives[name]
        if not entry.stages:
            return self.loss(name).signals
        place = len(entry.stages) - 1
        return self._stage_loss(("objectives", name, "stages", place), entry.stages[-1]).signals

    def steps(self, name: str, teacher: str) -> list[Step]:
        """The trainings of a cell, one after the other; most entries have one."""
        entry = self.grid.objectives[name]
        if not entry.stages:
            return [Step(name, teacher, self.loss(name), {}, ("objectives", name))]
        steps = []
        for place, stage in enumerate(entry.stages):
            where: Where = ("objectives", name, "stages", place)
            taught = teacher if place == len(entry.stages) - 1 else stage.teachers[0]
            spec = self._stage_loss(where, stage)
            steps.append(Step(stage.objective, taught, spec, stage.training, where))
        return steps

    def loss(self, name: str) -> ObjectiveSpec:
        """The loss or sum of losses of an entry without stages."""
        entry = self.grid.objectives[name]
        where: Where = ("objectives", name)
        loss = entry.loss or name
        if loss not in OBJECTIVES:
            if entry.loss:
                message = f"unknown loss {loss!r}: {nearest(loss, OBJECTIVES)}"
                raise self.refs.source.error((*where, "loss"), message)
            message = f"unknown objective {name!r}: {nearest(name, OBJECTIVES)}"
            raise self.refs.source.error(where, message, at_key=True)
        terms = []
        # By name, so that the order of a sum changes no identity.
        for other, term in sorted(entry.plus.items()):
            if other not in OBJECTIVES:
                message = f"unknown loss {other!r}: {nearest(other, OBJECTIVES)}"
                raise self.refs.source.error((*where, "plus", other), message, at_key=True)
            changed = _changed(other, term.parameters)
            build = self.refs.build
            values = {"name": other, "weight": term.weight, "parameters": changed}
            terms.append(build((*where, "plus", other, "parameters"), TermSpec, **values))
        changed = _changed(loss, entry.parameters)
        here: Where = (*where, "parameters")
        spec = self.refs.build(
            here, ObjectiveSpec, name=loss, parameters=changed, plus=tuple(terms)
        )
        if not spec.signals:
            names = " and ".join((loss, *sorted(entry.plus)))
            message = f"no teacher's signal feeds {names} together"
            raise self.refs.source.error((*where, "plus"), message, at_key=True)
        return spec

    def _stage_loss(self, where: Where, stage: Stage) -> ObjectiveSpec:
        named = self.grid.objectives.get(stage.objective)
        if named and named.stages:
            message = f"{stage.objective!r} has stages itself: list them here"
            raise self.refs.source.error((*where, "objective"), message)
        if named and not stage.parameters:
            return self.loss(stage.objective)
        loss = (named.loss or stage.objective) if named else stage.objective
        if loss not in OBJECTIVES:
            known = {**self.grid.objectives, **OBJECTIVES}
            message = f"unknown objective {loss!r}: {nearest(loss, known)}"
            raise self.refs.source.error((*where, "objective"), message)
        changed = _changed(loss, stage.parameters)
        here: Where = (*where, "parameters")
        return self.refs.build(here, ObjectiveSpec, name=loss, parameters=changed)


def _changed(loss: str, given: dict[str, float]) -> dict[str, float]:
    """The parameters that are not the loss's own defaults: they alone count for identities."""
    usual = OBJECTIVES[loss].parameters
    return {key: value for key, value in given.items() if value != usual.get(key)}

"""The cross product of a grid: which cells there are, with which settings, and what is left out."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError

from xsweep.orchestrator.grid.load import located
from xsweep.orchestrator.grid.resolve import Objectives, References, Step
from xsweep.orchestrator.grid.schema import (
    Backbone,
    Grid,
    Match,
    Objective,
    Stage,
    TrainingSettings,
)
from xsweep.orchestrator.grid.yaml import Where, YamlFile, nearest


class Cell(NamedTuple):
    """One training of the grid, by names."""

    backbone: Backbone
    objective: str
    teacher: str
    seed: int

    @property
    def name(self) -> str:
        """As jobs are named: `MiniLM-L6 infonce bm25_lists s1`."""
        return f"{self.backbone.name} {self.objective} {self.teacher} s{self.seed}"

    @property
    def labels(self) -> dict[str, Any]:
        """What reports group the cell's results by."""
        return {
            "backbone": self.backbone.name,
            "group": self.backbone.group,
            "objective": self.objective,
            "teacher": self.teacher,
            "seed": self.seed,
        }


class LeftOut(NamedTuple):
    """A cell that is not trained, and why."""

    cell: Cell
    reason: str


def check_names(refs: References) -> None:
    """Check every name in the grid against what it must name, and that labels are unique."""
    grid, file = refs.grid, refs.source
    labels: dict[str, int] = {}
    for place, backbone in enumerate(grid.backbones):
        first = labels.setdefault(backbone.name, place)
        if first != place:
            line, _ = file.position(("backbones", first))
            raise file.error(
                ("backbones", place),
                f"two backbones are called {backbone.name!r} (first in line {line}): "
                "give one a label of its own",
            )
        refs.model(("backbones", place), backbone)
    Objectives(refs).check()
    for place, seed in enumerate(grid.seeds):
        if seed in grid.seeds[:place]:
            raise file.error(("seeds", place), f"the seed {seed} is given twice")
    for name in grid.teachers:
        refs.teacher(name)
        refs.training_collection(name)
        refs.training_candidates(name)
    for block in ("exclude", "include"):
        for place, match in enumerate(getattr(grid, block)):
            _check_match(refs, (block, place), match)
    for place, override in enumerate(grid.overrides):
        _check_match(refs, ("overrides", place, "match"), override.match)
    for place, search in enumerate(grid.search):
        _check_match(refs, ("search", place, "match"), search.match)
        if search.apply:
            _check_match(refs, ("search", place, "apply"), search.apply)


def _check_match(refs: References, where: Where, match: Match) -> None:
    grid = refs.grid
    refs.names((*where, "backbone"), match.backbone, {b.name: b for b in grid.backbones})
    refs.names((*where, "group"), match.group, {b.group: b for b in grid.backbones if b.group})
    refs.names((*where, "objective"), match.objective, grid.objectives)
    refs.names((*where, "teacher"), match.teacher, grid.teachers)
    for place, seed in enumerate(match.seed):
        if seed not in grid.seeds:
            raise refs.source.error((*where, "seed", place), f"the grid has no seed {seed}")
    if not any(match.model_dump().values()):
        raise refs.source.error(where, "this rule matches every cell: name some of them")


def select_cells(
    grid: Grid, file: YamlFile, objectives: Objectives
) -> tuple[list[Cell], list[LeftOut]]:
    """The cells to train, in the grid's order, and those left out with their reasons.

    A cell is a backbone, an objective, one of that objective's teachers and a seed; `exclude`
    removes cells, `include` brings cells back (or in, with a teacher that the objective does not
    list). Raises ConfigError where nothing is left.
    """
    chosen, left_out = [], []
    for cell in _product(grid):
        named = objectives.teachers(cell.objective)
        listed = named is None or cell.teacher in named
        brought = [rule for rule in grid.include if matches(rule, cell)]
        if not listed and not any(rule.teacher for rule in brought):
            continue
        signal, usable = grid.teachers[cell.teacher].signal, objectives.signals(cell.objective)
        if signal not in usable:
            needed = " or ".join(sorted(usable))
            reason = f"{cell.objective} learns from {needed}; {cell.teacher} gives {signal}"
            left_out.append(LeftOut(cell, reason))
            continue
        rules = [i for i, rule in enumerate(grid.exclude) if matches(rule, cell)]
        if rules and not brought:
            line, _ = file.position(("exclude", rules[0]))
            left_out.append(LeftOut(cell, f"excluded in line {line}"))
        else:
            chosen.append(cell)
    if not chosen:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in left_out))
        raise file.error(
            ("objectives",), f"the grid is empty, every cell is left out: {reasons}", at_key=True
        )
    return chosen, left_out


def _product(grid: Grid) -> Iterator[Cell]:
    return map(Cell._make, product(grid.backbones, grid.objectives, grid.teachers, grid.seeds))


def matches(match: Match, cell: Cell) -> bool:
    """Whether a rule names the cell."""
    values: dict[str, Any] = {
        "backbone": cell.backbone.name,
        "group": cell.backbone.group,
        "objective": cell.objective,
        "teacher": cell.teacher,
        "seed": cell.seed,
    }
    return all(values[key] in getattr(match, key) for key in match.model_fields_set)


class Layers:
    """Works out a cell's training settings from the layers of the grid file.

    `training` comes first; then overrides, those that match by more keys later and else in the
    file's order; an objective's own settings count as an override by one key, after the others.
    """

    def __init__(self, grid: Grid, file: YamlFile) -> None:
        self.grid, self.source = grid, file
        general = {key: value for key, value in grid.training.items() if key != "collection"}
        self.layers: list[tuple[Where, Match, dict[str, Any]]] = [(("training",), Match(), general)]
        rules: list[tuple[Where, Match, dict[str, Any]]] = [
            (("overrides", i, "training"), rule.match, rule.training)
            for i, rule in enumerate(grid.overrides)
        ]
        rules += [
            (("objectives", name), Match(objective=(name,)), objective.training)
            for name, objective in grid.objectives.items()
            if not objective.stages
        ]
        self.layers += sorted(rules, key=lambda rule: len(rule[1].model_fields_set))
        stages = [
            (("objectives", name, "stages", place), Match(), stage.training)
            for name, objective in grid.objectives.items()
            for place, stage in enumerate(objective.stages)
        ]
        for where, _, values in [*self.layers, *stages]:
            self._check_keys(where, values)
        self._known: dict[str, TrainingSettings] = {}

    def _check_keys(self, where: Where, values: dict[str, Any]) -> None:
        known = set(TrainingSettings.model_fields)
        known |= {"collection"} if where == ("training",) else set()
        if where[0] == "objectives":
            known |= set((Stage if "stages" in where else Objective).model_fields)
        for key in values:
            if key not in known:
                message = f"unknown key {key!r}: {nearest(key, known)}"
                raise self.source.error((*where, key), message, at_key=True)

    def of(
        self, cell: Cell, step: Step, *further: tuple[Where, dict[str, Any]]
    ) -> TrainingSettings:
        """The settings of one training of a cell; ConfigError at the layer whose value is wrong.

        A stage has those of a cell with its objective and teacher, then its own; rules may name
        it by the objective whose stage it is, too. `further` settings win over all of these.
        """
        merged: dict[str, Any] = {}
        origin: dict[str, Where] = {}
        taught = cell._replace(teacher=step.teacher)
        names = (taught, taught._replace(objective=step.objective))
        layers = [*self.layers, (step.where, Match(), step.settings)]
        layers += [(where, Match(), values) for where, values in further]
        for where, match, values in layers:
            if any(matches(match, name) for name in names):
                merged |= values
                origin |= dict.fromkeys(values, where)
        key = repr(merged)
        if key not in self._known:
            try:
                self._known[key] = TrainingSettings.model_validate(merged)
            except ValidationError as problem:
                loc = problem.errors()[0]["loc"]
                where = origin.get(str(loc[0]), ("training",)) if loc else ("training",)
                raise located(problem, self.source, where) from problem
        return self._known[key]

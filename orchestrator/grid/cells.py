"""Cells of a grid: the cross product without excluded cells, and the settings of each training."""

from collections.abc import Collection
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError

from xsweep.evaluator.models.files import refusal
from xsweep.orchestrator.grid.load import located
from xsweep.orchestrator.grid.resolve import References, Step, check_objectives, mismatch, steps_of
from xsweep.orchestrator.grid.schema import Backbone, Match, TrainingSettings
from xsweep.orchestrator.grid.yaml import Where


class Cell(NamedTuple):
    """One training of the grid, by names."""

    backbone: Backbone
    objective: str
    teacher: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in those of its jobs: `MiniLM-L6 infonce bm25_lists s1`."""
        return f"{self.backbone.name} {self.objective} {self.teacher} s{self.seed}"

    @property
    def labels(self) -> dict[str, Any]:
        """Labels by which reports group the cell's results, and rules match it."""
        return {
            "backbone": self.backbone.name,
            "group": self.backbone.group,
            "objective": self.objective,
            "teacher": self.teacher,
            "seed": self.seed,
        }


class SkippedCell(NamedTuple):
    """A cell that is not trained, with the reason."""

    cell: Cell
    reason: str


def check_names(refs: References) -> None:
    """Check that every name in the grid is known and every label unique; reports all that are not.

    No data is read.
    """
    grid, file = refs.grid, refs.source
    labels: dict[str, int] = {}
    for place, backbone in enumerate(grid.backbones):
        with file.collecting():
            refs.model(("backbones", place), backbone)
            first = labels.setdefault(backbone.name, place)
            if first != place:
                line, _ = file.position(("backbones", first))
                raise file.error(
                    ("backbones", place),
                    f"two backbones are called {backbone.name!r} (first in line {line}): "
                    "set a different `label`",
                )
    check_objectives(refs)
    with file.collecting():
        refs.names(("seeds",), grid.seeds, grid.seeds)
    for name in grid.teachers:
        for check in (refs.teacher, refs.training_collection, refs.training_candidates):
            with file.collecting():
                check(name)
    _check_collections(refs)
    rules: list[tuple[Where, Match | None]] = [
        *((("exclude", place), match) for place, match in enumerate(grid.exclude)),
        *((("include", place), match) for place, match in enumerate(grid.include)),
        *((("overrides", place, "match"), rule.match) for place, rule in enumerate(grid.overrides)),
        *((("search", place, "match"), search.match) for place, search in enumerate(grid.search)),
        *((("search", place, "apply"), search.apply) for place, search in enumerate(grid.search)),
    ]
    for where, match in rules:
        with file.collecting():
            if match:
                _check_match(refs, where, match)
    file.raise_errors()


def _check_collections(refs: References) -> None:
    evaluation, validation = refs.grid.evaluation, refs.grid.validation
    for place, name in enumerate(evaluation.collections):
        with refs.source.collecting():
            refs.collection(("evaluation", "collections", place), name)
            refs.first_stages(name, "evaluation")
    for place, name in enumerate(evaluation.suites):
        with refs.source.collecting():
            refs.suite(("evaluation", "suites", place), name)
    with refs.source.collecting():
        if validation and validation.collection:
            refs.collection(("validation", "collection"), validation.collection)
            refs.first_stages(validation.collection, "validation")
        elif validation:
            refs.suite(("validation", "suite"), validation.suite or "")


def _check_match(refs: References, where: Where, match: Match) -> None:
    grid = refs.grid
    known: dict[str, Collection[str | int]] = {
        "backbone": [backbone.name for backbone in grid.backbones],
        "group": [backbone.group for backbone in grid.backbones if backbone.group],
        **{"objective": grid.objectives, "teacher": grid.teachers, "seed": grid.seeds},
    }
    for key, names in known.items():
        refs.names((*where, key), getattr(match, key), names)
    if not any(match.model_dump().values()):
        raise refs.source.error(where, "this rule matches every cell: name some of them")


def select_cells(refs: References) -> tuple[list[Cell], list[SkippedCell]]:
    """The cells to train, in the grid's order, and the skipped ones.

    A cell is a backbone, an objective, one of that objective's teachers and a seed; `exclude`
    removes cells, `include` restores cells or adds them, with a teacher that the objective does
    not list. Raises ConfigError where no cell remains.
    """
    grid, file = refs.grid, refs.source
    selected, skipped = [], []
    losses = {name: steps_of(refs, name, "")[-1].spec for name in grid.objectives}
    for values in product(grid.backbones, grid.objectives, grid.teachers, grid.seeds):
        cell = Cell(*values)
        entry = grid.objectives[cell.objective]
        listed = entry.stages[-1].teachers if entry.stages else entry.teachers  # None: all
        included = [rule for rule in grid.include if matches(rule, cell)]
        is_listed = listed is None or cell.teacher in listed
        if not is_listed and not any(rule.teacher for rule in included):
            continue
        excluded = [place for place, rule in enumerate(grid.exclude) if matches(rule, cell)]
        if reason := mismatch(refs, cell.objective, losses[cell.objective], cell.teacher):
            skipped.append(SkippedCell(cell, reason))
        elif excluded and not included:
            line, _ = file.position(("exclude", excluded[0]))
            skipped.append(SkippedCell(cell, f"excluded in line {line}"))
        else:
            selected.append(cell)
    if not selected:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in skipped))
        message = f"the grid is empty, every cell is skipped: {reasons}"
        raise file.error(("objectives",), message, at_key=True)
    return selected, skipped


def matches(match: Match, cell: Cell) -> bool:
    """True if the rule names the cell."""
    labels = cell.labels
    return all(labels[key] in getattr(match, key) for key in match.model_fields_set)


class Layers:
    """Merges the training settings of a cell from the layers of the grid file.

    `training` is the first layer; overrides follow, those that match by more keys later and else
    in the file's order. An objective's own settings count as an override by one key, after others.
    """

    def __init__(self, refs: References) -> None:
        grid, self.source = refs.grid, refs.source
        general = {key: value for key, value in grid.training.items() if key != "collection"}
        rules: list[tuple[Where, Match, dict[str, Any]]] = [
            (("overrides", place, "training"), rule.match, rule.training)
            for place, rule in enumerate(grid.overrides)
        ]
        for name, objective in grid.objectives.items():
            where: Where = ("objectives", name)
            if not objective.stages:
                rules.append((where, Match(objective=(name,)), objective.training))
        rules.sort(key=lambda rule: len(rule[1].model_fields_set))
        self.layers = [(("training",), Match(), general), *rules]
        self._merged: dict[tuple[str, str], TrainingSettings] = {}
        self._models = {
            each.name: refs.model(("backbones", place), each.spec)
            for place, each in enumerate(grid.backbones)
        }
        self._rehearsal = grid.rehearsal

    def settings(
        self, cell: Cell, step: Step, *further: tuple[Where, dict[str, Any]]
    ) -> TrainingSettings:
        """The settings of one training of a cell; ConfigError at the layer with a wrong value.

        A stage has the settings of a cell with its objective and teacher, then its own; rules may
        also name it by the objective that it is a stage of. `further` settings override all.
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
        key = cell.backbone.name, repr(merged)
        if key not in self._merged:
            try:
                self._merged[key] = TrainingSettings.model_validate(merged)
            except ValidationError as problem:
                loc = problem.errors()[0]["loc"]
                where = origin.get(str(loc[0]), ("training",)) if loc else ("training",)
                raise located(problem, self.source, where) from problem
            lora, layout = self._merged[key].lora, self._merged[key].layout
            targets = lora.targets if lora else None
            refused = refusal(self._models[cell.backbone.name], "backbone", layout, targets)
            if refused and not self._rehearsal:
                setting, message = refused
                raise self.source.error((*origin[setting], setting), message)
        return self._merged[key]

"""From a grid file to jobs: one training per cell, one evaluation per training and collection."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xsweep.db.jobs import NewJob
from xsweep.evaluator.specs import ModelSpec
from xsweep.orchestrator.grid.cells import Cell, Layers, LeftOut, check_names, select_cells
from xsweep.orchestrator.grid.load import read_grid
from xsweep.orchestrator.grid.resolve import Objectives, References, Step
from xsweep.orchestrator.grid.schema import TrainingSettings
from xsweep.orchestrator.grid.yaml import Where
from xsweep.orchestrator.plan.graph import JobGraph
from xsweep.orchestrator.plan.identity import ChecksumCache
from xsweep.orchestrator.plan.jobs import Evaluations, Shared
from xsweep.orchestrator.plan.search import Tuned, plan_searches
from xsweep.orchestrator.settings import Settings
from xsweep.trainer.specs import TrainSpec


@dataclass(frozen=True)
class Plan:
    """What one grid file asks for."""

    name: str
    grid: str
    """The file's text."""
    jobs: tuple[NewJob, ...]
    """Parents before children."""
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Files without which the jobs cannot be stored, and what they are."""
    rehearsal: bool = False

    @property
    def kinds(self) -> dict[str, int]:
        """Number of jobs of each kind."""
        return dict(Counter(job.kind for job in self.jobs))


def plan_grid(path: Path, settings: Settings) -> Plan:
    """Read a grid file and plan it; nothing is written but checksums, kept below `home`.

    Raises ConfigError with `file:line:column` for what is wrong in the file, DataError for a data
    file that cannot be read.
    """
    grid, file = read_grid(path, settings.data_home)
    own_folders = []
    if grid.rehearsal:
        from xsweep.orchestrator.rehearsal import rehearsal_of
        from xsweep.orchestrator.storage.store import open_store

        own_folders.append(open_store(settings.store).root / "rehearsal")
        grid = rehearsal_of(grid, own_folders[0])
    refs = References(grid, file, settings.data_home, own_folders)
    check_names(refs)
    pins = ChecksumCache(settings.home / "checksums.json")
    planned = _Planner(refs, pins).plan()
    pins.save()
    return planned


class _Planner:
    """Holds what all cells share while their jobs are added."""

    def __init__(self, refs: References, pins: ChecksumCache) -> None:
        self.refs, self.grid = refs, refs.grid
        self.graph = JobGraph(self.grid.resources, pins, rehearsal=self.grid.rehearsal)
        self.shared = Shared(refs, pins, self.graph)
        self.objectives = Objectives(refs)
        self.cells, self.left_out = select_cells(self.grid, refs.source, self.objectives)
        layers = Layers(self.grid, refs.source)
        self.evaluations = Evaluations(refs, self.shared, self.graph)
        self.validation = self.shared.validation()
        measure = self.validation.spec.measure if self.validation else None
        self.searches = plan_searches(refs, layers, self.objectives, self.cells, measure)
        self.steps = {
            cell: [
                (step, self._settings(layers.of(cell, step, *self._placeholder_settings(cell))))
                for step in self.objectives.steps(cell.objective, cell.teacher)
            ]
            for cell in self.cells
        }
        used = {step.teacher: None for steps in self.steps.values() for step, _ in steps}
        self.teachers = {name: self.shared.teacher(name) for name in used}
        self.shared.check_no_test_leakage(self.evaluations.tests, self.validation, self.teachers)
        self.backbones = {
            backbone.name: self._backbone(place)
            for place, backbone in enumerate(self.grid.backbones)
        }

    def _settings(self, settings: TrainingSettings) -> TrainingSettings:
        if not self.grid.rehearsal:
            return settings
        from xsweep.orchestrator.rehearsal import shortened

        return shortened(settings)

    def _placeholder_settings(self, cell: Cell) -> list[tuple[Where, dict[str, Any]]]:
        """What stands for settings that a search will choose."""
        return [self.searches[cell].given] if cell in self.searches else []

    def _backbone(self, place: int) -> tuple[ModelSpec, ModelSpec]:
        """A pinned backbone, and its tokenizer: the same for backbones cut to fewer layers."""
        where: Where = ("backbones", place)
        model = self.shared.model(where, self.grid.backbones[place].spec)
        return model, model.model_copy(update={"layers": None, "attention": "sdpa"})

    def plan(self) -> Plan:
        """All jobs; the reference rows of the report come first."""
        self.evaluations.add_references(self.teachers.values())
        trained: dict[str, Cell] = {}
        for cell in self.cells:
            run = self._train(cell)
            first = trained.setdefault(run, cell)
            if first is not cell:
                self.left_out.append(LeftOut(cell, f"it is the same training as {first.name}"))
                continue
            _, settings = self.steps[cell][-1]
            self.evaluations.add_run(cell, run, settings, self.backbones[cell.backbone.name][1])
        return Plan(
            name=self.grid.name,
            grid=self.refs.source.text,
            jobs=tuple(self.graph.jobs.values()),
            cells=tuple(trained.values()),
            left_out=tuple(self.left_out),
            absent=self.refs.absent,
            rehearsal=self.grid.rehearsal,
        )

    def _train(self, cell: Cell) -> str:
        """The cell's training, after those of the stages before it."""
        run = None
        for step, settings in self.steps[cell]:
            run = self._train_step(cell, step, settings, run)
        assert run
        return run

    def _train_step(
        self, cell: Cell, step: Step, settings: TrainingSettings, start: str | None
    ) -> str:
        is_last = step is self.steps[cell][-1][0]
        # A stage is known by what it is, so that cells which share it find it under one name.
        known = cell if is_last else cell._replace(objective=step.objective, teacher=step.teacher)
        training = self._training(cell, step, settings)
        if start:
            training.parents["start"] = start
            training.spec = training.spec.model_copy(update={"continues": True})
        if cell in self.searches:
            tuned = self.searches[cell]
            training.parents["search"] = self._search(tuned)
            training.spec = training.spec.model_copy(update={"searched": tuned.spec.settings})
        labels = known.labels | {"order": len(self.graph.jobs)}
        return self._add_training(f"train {known.name}", training, labels)

    def _search(self, tuned: Tuned) -> str:
        """The job that picks a search's winner, after its trials."""
        trials = {}
        for place, (drawn, settings) in enumerate(tuned.trials):
            training = self._training(tuned.cell, tuned.step, self._settings(settings))
            training.spec = training.spec.model_copy(update={"trial": tuned.trial})
            shown = " ".join(f"{name} {value}" for name, value in drawn.items())
            labels = tuned.cell.labels | {"order": len(self.graph.jobs), "trial": drawn}
            name = f"trial {tuned.cell.name} {shown}"
            trials[f"trial-{place + 1:03}"] = self._add_training(name, training, labels)
        backbone, objective, teacher = tuned.cell.backbone.name, *tuned.cell[1:3]
        return self.graph.add(
            "search",
            f"search {backbone} {objective} {teacher} {' '.join(tuned.spec.settings)}",
            tuned.spec,
            parents=trials,
            labels={"backbone": backbone, "objective": objective, "teacher": teacher},
        )

    def _training(self, cell: Cell, step: Step, settings: TrainingSettings) -> "_Training":
        taught = self.teachers[step.teacher]
        backbone, tokenizer = self.backbones[cell.backbone.name]
        length = settings.document_tokens
        parents = dict(taught.parents)
        savings = {"tokens": self.graph.tokens(taught.collection, tokenizer, length)}
        validation = None
        if self.validation:
            validation = self.validation.spec
            parents |= self.validation.parents
            savings |= self.shared.validation_tokens(self.validation, tokenizer, length)
        spec = TrainSpec(
            backbone=backbone,
            objective=step.spec,
            teacher=taught.spec,
            collection=taught.collection,
            optimisation=settings.optimisation,
            seed=cell.seed,
            query_tokens=settings.query_tokens,
            document_tokens=length,
            validation=validation,
        )
        return _Training(spec, parents, savings)

    def _add_training(self, name: str, training: "_Training", labels: Mapping[str, Any]) -> str:
        return self.graph.add(
            "train",
            name,
            training.spec,
            parents=training.parents,
            savings=training.savings,
            labels=labels,
        )


@dataclass
class _Training:
    """A training on its way into the graph."""

    spec: TrainSpec
    parents: dict[str, str]
    savings: dict[str, str]

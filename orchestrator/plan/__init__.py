"""Plan a grid: one training per cell, one evaluation per training and test collection."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xsweep.db.engine import connect
from xsweep.db.jobs import NewJob, Submission, add_sweep
from xsweep.errors import DataError
from xsweep.orchestrator.grid.cells import Cell, Layers, SkippedCell, check_names, select_cells
from xsweep.orchestrator.grid.load import read_grid
from xsweep.orchestrator.grid.resolve import References, Step, steps_of
from xsweep.orchestrator.grid.schema import TrainingSettings
from xsweep.orchestrator.plan.context import PlanContext
from xsweep.orchestrator.plan.identity import ChecksumCache
from xsweep.orchestrator.plan.jobs import (
    add_evaluations,
    add_references,
    check_no_test_leakage,
    resolve_teacher,
    test_sets,
    validation_plan,
    validation_tokens,
)
from xsweep.orchestrator.plan.search import PlannedSearch, plan_searches
from xsweep.orchestrator.settings import Settings
from xsweep.trainer.specs import TrainSpec


@dataclass(frozen=True)
class Plan:
    """The jobs of one grid file."""

    name: str
    grid: str
    """Text of the file."""
    jobs: tuple[NewJob, ...]
    """Parents come before their children."""
    cells: tuple[Cell, ...]
    skipped: tuple[SkippedCell, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Files without which the jobs cannot be stored, with descriptions."""
    rehearsal: bool = False

    @property
    def kinds(self) -> dict[str, int]:
        """Number of jobs of each kind."""
        return dict(Counter(job.kind for job in self.jobs))


def store_plan(database: str, plan: Plan, replace: bool = False) -> Submission:
    """Add the jobs of a plan to the job table at a URL; with `replace`, others leave the sweep.

    Raises DataError for missing files, ConfigError for a sweep of that name with other settings.
    """
    if plan.absent:  # the checksum of each is part of an identity
        path, what = next(iter(plan.absent.items()))
        raise DataError(
            f"{len(plan.absent)} files that the jobs depend on are missing, first {path}: "
            f"{what}. Add them and submit again; `xsweep plan` lists them all"
        )
    engine = connect(database, create=True)
    return add_sweep(engine, name=plan.name, grid=plan.grid, jobs=plan.jobs, replace=replace)


def plan_grid(path: Path, settings: Settings, changes: Iterable[str] = ()) -> Plan:
    """Read and plan a grid file; nothing is written but checksums, below `home`.

    Raises ConfigError with `file:line:column` for an error in the file, DataError for a data file
    that cannot be read.
    """
    grid, file = read_grid(path, settings.data_home, changes)
    own_folders = []
    if grid.rehearsal:
        from xsweep.orchestrator.rehearsal import rehearsal_of
        from xsweep.orchestrator.storage.store import open_store

        own_folders.append(open_store(settings.store).root / "rehearsal")
        grid = rehearsal_of(grid, own_folders[0])
    refs = References(grid, file, settings.data_home, own_folders)
    check_names(refs)
    pins = ChecksumCache(settings.home / "checksums.json")
    plan = _plan(PlanContext(refs, pins))
    pins.save()
    return plan


def _plan(context: PlanContext) -> Plan:
    refs, grid = context.refs, context.grid
    cells, skipped = select_cells(refs)
    layers = Layers(refs)
    context.tests = test_sets(context)
    context.validation = validation_plan(context)
    searches = plan_searches(refs, layers, cells)
    trainings: dict[Cell, list[tuple[Step, TrainingSettings]]] = {}
    for cell in cells:
        placeholder = [searches[cell].placeholder] if cell in searches else []
        trainings[cell] = [
            (step, _settings(context, layers.settings(cell, step, *placeholder)))
            for step in steps_of(refs, cell.objective, cell.teacher)
        ]
    teachers = dict.fromkeys(step.teacher for steps in trainings.values() for step, _ in steps)
    context.teachers = {name: resolve_teacher(context, name) for name in teachers}
    check_no_test_leakage(context)
    for place, backbone in enumerate(grid.backbones):
        model = context.model(("backbones", place), backbone.spec)
        tokenizer = model.model_copy(update={"layers": None, "attention": "sdpa"})
        context.backbones[backbone.name] = model, tokenizer
    add_references(context)
    trained: dict[str, Cell] = {}
    for cell, steps in trainings.items():
        run = _add_run(context, cell, steps, searches.get(cell))
        first = trained.setdefault(run, cell)
        if first is not cell:
            skipped.append(SkippedCell(cell, f"it is the same training as {first.name}"))
            continue
        _, tokenizer = context.backbones[cell.backbone.name]
        add_evaluations(context, cell, run, steps[-1][1], tokenizer)
    return Plan(
        name=grid.name,
        grid=refs.source.text,
        jobs=tuple(context.jobs.values()),
        cells=tuple(trained.values()),
        skipped=tuple(skipped),
        absent=refs.absent,
        rehearsal=grid.rehearsal,
    )


def _settings(context: PlanContext, settings: TrainingSettings) -> TrainingSettings:
    if not context.grid.rehearsal:
        return settings
    from xsweep.orchestrator.rehearsal import shortened

    return shortened(settings)


def _add_run(
    context: PlanContext,
    cell: Cell,
    steps: list[tuple[Step, TrainingSettings]],
    search: PlannedSearch | None,
) -> str:
    """Add a cell's training after those of its preceding stages, and return its identity."""
    changes: dict[str, Any] = {"searched": search.spec.settings} if search else {}
    parents = {"search": _add_search(context, search)} if search else {}
    for place, (step, settings) in enumerate(steps):
        # A stage is named after itself, since cells may share it.
        named = cell
        if place < len(steps) - 1:
            named = cell._replace(objective=step.objective, teacher=step.teacher)
        name, labels = f"train {named.name}", named.labels
        run = _add_training(context, name, labels, cell, step, settings, parents, **changes)
        parents, changes = {**parents, "start": run}, {**changes, "continues": True}
    return run


def _add_search(context: PlanContext, search: PlannedSearch) -> str:
    """Add a search's trials and the job that picks the winner, and return its identity."""
    cell, step = search.cell, search.step
    trials = {}
    for place, (drawn, settings) in enumerate(search.trials):
        values = " ".join(f"{name} {value}" for name, value in drawn.items())
        name, labels = f"trial {cell.name} {values}", {**cell.labels, "trial": drawn}
        settings = _settings(context, settings)
        trials[f"trial-{place + 1:03}"] = _add_training(
            context, name, labels, cell, step, settings, trial=search.trial
        )
    labels = {key: cell.labels[key] for key in ("backbone", "objective", "teacher")}
    name = " ".join(("search", *labels.values(), *search.spec.settings))
    return context.add("search", name, search.spec, parents=trials, labels=labels)


def _add_training(
    context: PlanContext,
    name: str,
    labels: Mapping[str, Any],
    cell: Cell,
    step: Step,
    settings: TrainingSettings,
    parents: Mapping[str, str] = {},
    **changes: Any,
) -> str:
    teacher, validation = context.teachers[step.teacher], context.validation
    backbone, tokenizer = context.backbones[cell.backbone.name]
    length = settings.document_tokens
    cache_parents = {"tokens": context.tokens(teacher.collection, tokenizer, length)}
    if validation:
        cache_parents |= validation_tokens(context, validation, tokenizer, length)
    spec = TrainSpec(
        backbone=backbone,
        objective=step.spec,
        teacher=teacher.spec,
        collection=teacher.collection,
        optimisation=settings.optimisation,
        seed=cell.seed,
        query_tokens=settings.query_tokens,
        document_tokens=length,
        validation=validation and validation.spec,
        **changes,
    )
    return context.add(
        "train",
        name,
        spec,
        parents={**teacher.parents, **(validation.parents if validation else {}), **parents},
        cache_parents=cache_parents,
        labels={**labels, "order": len(context.jobs)},
    )

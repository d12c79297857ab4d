"""What `rehearsal: true` makes of a grid: the same cells and jobs, everything in them small.

Data sets of ir_datasets, teachers' files and models by name are generated below a folder of the
store, once; what the user gave as files or folders is read as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from xsweep.evaluator.data.suites import suite
from xsweep.evaluator.specs import Bm25Spec, ModelSpec
from xsweep.orchestrator.grid.schema import (
    Backbone,
    Collection,
    FirstStage,
    Grid,
    Need,
    Teacher,
    TrainingSettings,
)
from xsweep.orchestrator.rehearsal.datasets import write_datasets
from xsweep.orchestrator.rehearsal.models import Head, write_model
from xsweep.orchestrator.rehearsal.teachers import write_teacher
from xsweep.trainer.teachers.formats import FILE_KEYS

STEPS, WARMUP_STEPS, BATCH_QUERIES = 4, 1, 8
"""Of every training: enough for a checkpoint in the middle and two validations."""


LR_FACTOR = 1000
"""On the grid's rates, so that so few steps tell objectives apart: a cell that shows another's
figures is seen."""


EVERY_STEPS = 2


SUFFIX = "rehearsal"


Model = TypeVar("Model", bound=ModelSpec)


def rehearsed(grid: Grid, folder: Path) -> Grid:
    """The grid with everything from elsewhere generated below `folder`; its name says so.

    Raises ConfigError for a data set that cannot be generated.
    """
    home = folder / "ir_datasets"
    write_datasets(home, set(_data_sets(grid)))
    evaluation = grid.evaluation
    validation = grid.validation and grid.validation.model_copy(
        update={
            "every_steps": min(EVERY_STEPS, grid.validation.every_steps),
            "first_stage": grid.validation.first_stage
            and _first_stage(grid.validation.first_stage, folder),
        }
    )
    return grid.model_copy(
        update={
            "name": grid.name if grid.name.endswith(SUFFIX) else f"{grid.name}-{SUFFIX}",
            "ir_datasets_home": str(home),
            "collections": {
                name: _collection(each, folder) for name, each in grid.collections.items()
            },
            "backbones": tuple(_backbone(each, folder) for each in grid.backbones),
            "teachers": {
                name: _teacher(grid, each, folder) for name, each in grid.teachers.items()
            },
            "validation": validation,
            "evaluation": evaluation.model_copy(
                update={"first_stage": _first_stage(evaluation.first_stage, folder)}
            ),
            "resources": {kind: Need(cpus=1) for kind in grid.resources},
        }
    )


def shortened(settings: TrainingSettings) -> TrainingSettings:
    """A training of a few steps of few samples, without DeepSpeed, whose import takes longer."""
    return settings.model_copy(
        update={
            "lr": settings.lr * LR_FACTOR,
            "steps": min(settings.steps, STEPS),
            "warmup_steps": min(settings.warmup_steps, WARMUP_STEPS),
            "batch_queries": min(settings.batch_queries, BATCH_QUERIES),
            "checkpoint_every_steps": EVERY_STEPS,
            "engine": "plain",
        }
    )


def _data_sets(grid: Grid) -> Iterator[str]:
    """The ids of ir_datasets that the grid names."""
    validation = grid.validation
    names = [
        grid.training.get("collection"),
        *(teacher.collection for teacher in grid.teachers.values()),
        *(teacher.source for teacher in grid.teachers.values()),
        *grid.evaluation.collections,
        *([validation.collection] if validation else []),
    ]
    for name in names:
        if isinstance(name, str) and name.startswith("irds:"):
            yield name.removeprefix("irds:")
    yield from (each.irds for each in grid.collections.values() if each.irds)
    suites = [*grid.evaluation.suites, *([validation.suite] if validation else [])]
    for named in filter(None, suites):
        yield from (each.id for each in suite(named))


def _collection(entry: Collection, folder: Path) -> Collection:
    if entry.first_stage is None:
        return entry
    return entry.model_copy(update={"first_stage": _first_stage(entry.first_stage, folder)})


def _backbone(entry: Backbone, folder: Path) -> Backbone:
    where = _model_folder(folder, entry.name, "none", of=entry.id or entry.name)
    return Backbone(
        folder=str(where), label=entry.name, group=entry.group, attention=entry.attention
    )


def _first_stage(stage: FirstStage, folder: Path) -> FirstStage:
    if stage.run or stage.runs or stage.scoreddocs:
        # A given run ranks the real documents; BM25 stands for it, under its label.
        return FirstStage(bm25=Bm25Spec(), label=stage.label or "first stage")
    for kind, head in (("dense", "none"), ("splade", "masked")):
        learned = getattr(stage, kind)
        if learned:
            tiny = _tiny(learned.model, folder, head)  # type: ignore[arg-type]
            return stage.model_copy(update={kind: learned.model_copy(update={"model": tiny})})
    return stage


def _teacher(grid: Grid, entry: Teacher, folder: Path) -> Teacher:
    head: Head = "score" if entry.type == "cross_encoder" else "none"
    changed: dict[str, object] = {
        "model": tuple(_tiny(model, folder, head) for model in entry.model)
    }
    form = next((form for form in FILE_KEYS if getattr(entry, form)), None)
    name = entry.collection or grid.training.get("collection")
    own = grid.collections.get(str(name))
    generated = form == "jsonl" or (own.irds if own else str(name).startswith("irds:"))
    if form and generated and getattr(entry, form) != "bm25":
        path = folder / "teachers" / Path(getattr(entry, form)).name
        write_teacher(path, form)
        changed |= {form: str(path), "md5": None, "sha256": None}
    return entry.model_copy(update=changed)


def _tiny(model: Model, folder: Path, head: Head) -> ModelSpec:
    """A tiny model in place of one that is known by its id; others are here and stay."""
    if model.id is None:
        return model
    return ModelSpec(
        folder=str(_model_folder(folder, model.id, head, of=model.id)), attention=model.attention
    )


def _model_folder(folder: Path, name: str, head: Head, *, of: str) -> Path:
    where = folder / "models" / f"{name.replace('/', '--')}-{head}"
    write_model(where, name, family=of, head=head)
    return where

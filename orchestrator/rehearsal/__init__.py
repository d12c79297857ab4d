"""Rehearsals: `rehearsal: true` runs a grid's jobs with tiny random models on generated data.

Data sets of ir_datasets, teachers' files and models with an id are generated once, in a folder of
the store; files and folders that the user gave are read as they are.
"""

from collections.abc import Iterator
from pathlib import Path

from xsweep.evaluator.data.suites import suite
from xsweep.evaluator.specs import Bm25Spec, ModelSpec
from xsweep.orchestrator.grid.schema import (
    Backbone,
    FirstStage,
    Grid,
    Need,
    Teacher,
    TrainingSettings,
)
from xsweep.orchestrator.rehearsal.datasets import seed_of, write_datasets, write_teacher
from xsweep.orchestrator.rehearsal.models import HEADS, Head, write_model
from xsweep.trainer.teachers.formats import FILE_KEYS

STEPS, WARMUP_STEPS, BATCH_QUERIES = 4, 1, 8
"""Length of a training: enough for a checkpoint in the middle and two validations."""

EVERY_STEPS = 2
"""Steps between validations, and between checkpoints."""

LR_FACTOR = 1000
"""Increase of learning rates, so that objectives differ after a few steps and mixed-up results
show."""

SUFFIX = "rehearsal"

DECODERS = ("qwen", "llama", "mistral", "gemma", "phi-", "gpt", "smollm")
"""Parts of names of decoders, in whose place a tiny one is trained."""


def rehearsal_of(grid: Grid, folder: Path) -> Grid:
    """The grid with generated data and models below `folder`; its name ends in `rehearsal`.

    Raises ConfigError for a data set that cannot be generated.
    """
    home = folder / "ir_datasets"
    write_datasets(home, set(_data_sets(grid)))

    def stages(given: tuple[FirstStage, ...] | None) -> tuple[FirstStage, ...] | None:
        return given and tuple(_first_stage(each, folder) for each in given)

    collections = {
        name: entry.model_copy(update={"first_stage": stages(entry.first_stage)})
        for name, entry in grid.collections.items()
    }
    evaluation, validation = grid.evaluation, grid.validation
    changed = {
        "name": grid.name if grid.name.endswith(SUFFIX) else f"{grid.name}-{SUFFIX}",
        "ir_datasets_home": str(home),
        "collections": collections,
        "backbones": tuple(_backbone(each, folder) for each in grid.backbones),
        "teachers": {name: _teacher(grid, each, folder) for name, each in grid.teachers.items()},
        "evaluation": evaluation.model_copy(update={"first_stage": stages(evaluation.first_stage)}),
        "resources": {kind: Need(cpus=1) for kind in grid.resources},
    }
    if validation:
        every_steps = min(EVERY_STEPS, validation.every_steps)
        stage = validation.first_stage and _first_stage(validation.first_stage, folder)
        shorter = {"every_steps": every_steps, "first_stage": stage}
        changed["validation"] = validation.model_copy(update=shorter)
    return grid.model_copy(update=changed)


def shortened(settings: TrainingSettings) -> TrainingSettings:
    """Settings of a few small steps, without DeepSpeed, whose import would take longer."""
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
    """Ids of the ir_datasets data sets that the grid names."""
    names = [grid.training.get("collection"), *grid.evaluation.collections]
    for teacher in grid.teachers.values():
        names += [teacher.collection, teacher.source]
    suites = list(grid.evaluation.suites)
    if grid.validation:
        names.append(grid.validation.collection)
        suites += [grid.validation.suite] if grid.validation.suite else []
    for name in names:
        if isinstance(name, str) and name.startswith("irds:"):
            yield name.removeprefix("irds:")
    yield from (entry.irds for entry in grid.collections.values() if entry.irds)
    for name in suites:
        yield from (each.id for each in suite(name))


def _backbone(entry: Backbone, folder: Path) -> Backbone:
    family = entry.id or entry.name
    is_decoder = entry.prompt or any(part in family.lower() for part in DECODERS)
    tiny = _tiny_folder(folder, entry.name, "next" if is_decoder else "none", family=family)
    kept = entry.model_dump(include={"group", "attention", "prompt"})
    return Backbone(folder=tiny, label=entry.name, **kept)


def _first_stage(stage: FirstStage, folder: Path) -> FirstStage:
    if stage.run or stage.runs or stage.scoreddocs:
        # The run ranks the real documents; BM25 replaces it under its label.
        return FirstStage(bm25=Bm25Spec(), label=stage.label or "first stage")
    learned = stage.dense or stage.splade
    if learned is None:
        return stage
    model = _tiny(learned.model, folder, "masked" if stage.splade else "none")
    return stage.model_copy(update={learned.type: learned.model_copy(update={"model": model})})


def _teacher(grid: Grid, entry: Teacher, folder: Path) -> Teacher:
    models = tuple(_tiny(model, folder, HEADS[entry.type]) for model in entry.model)
    changed: dict[str, object] = {"model": models}
    if entry.listwise:  # a tiny model answers in place of a server
        windows = {"server": None, "passage_words": min(entry.listwise.passage_words, 20)}
        changed["listwise"] = entry.listwise.model_copy(update=windows)
    form = next((form for form in FILE_KEYS if getattr(entry, form)), None)
    name = entry.collection or grid.training.get("collection")
    own = grid.collections.get(str(name))
    generated = form in ("jsonl", "parquet") or (own.irds if own else str(name).startswith("irds:"))
    if form and generated and getattr(entry, form) != "bm25":
        path = folder / "teachers" / Path(getattr(entry, form)).name
        if entry.columns:
            content = f"{entry.parquet} {entry.columns!r}"
            path = path.with_name(f"{seed_of(content)}.parquet")
        write_teacher(path, form, entry.columns)
        changed |= {form: str(path), "md5": None, "sha256": None}
    return entry.model_copy(update=changed)


def _tiny(model: ModelSpec, folder: Path, head: Head) -> ModelSpec:
    """A tiny model in place of one with an id; models in folders and packages stay."""
    if model.id is None:
        return model
    tiny = _tiny_folder(folder, model.id, head, family=model.id)
    return ModelSpec(folder=tiny, attention=model.attention)


def _tiny_folder(folder: Path, name: str, head: Head, *, family: str) -> str:
    path = folder / "models" / f"{name.replace('/', '--')}-{head}"
    write_model(path, name, family=family, head=head)
    return str(path)

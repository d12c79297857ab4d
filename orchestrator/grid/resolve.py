"""Resolve the names and paths of a grid file to specs; no data is read."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from xsweep.errors import DataError
from xsweep.evaluator.data.collection import folder_files
from xsweep.evaluator.data.files import from_hub, parquet_files
from xsweep.evaluator.data.suites import SUITES, dataset, suite
from xsweep.evaluator.models.files import refusal
from xsweep.evaluator.specs import (
    HUB,
    ApidocsSpec,
    Bm25Spec,
    CollectionSpec,
    FileSpec,
    FilesSpec,
    FirstStageSpec,
    FolderSpec,
    IdenticalIds,
    IrdsSpec,
    JsonlSpec,
    ModelSpec,
    ParquetSpec,
    RunSpec,
    ScoredDocsSpec,
)
from xsweep.orchestrator.grid.load import located
from xsweep.orchestrator.grid.schema import Collection, FirstStage, Grid, Objective, Stage, Teacher
from xsweep.orchestrator.grid.yaml import Where, YamlFile, nearest
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import ObjectiveSpec, SamplingSpec, TeacherSpec, TermSpec
from xsweep.trainer.teachers.formats import FILE_KEYS, FORMATS

Model = TypeVar("Model", bound=BaseModel)
Role = Literal["evaluation", "validation"]

APIDOCS = tuple(f"apidocs/{split}" for split in ("train", "validation", "test"))

ABSENT = "0" * 64
"""Checksum in the spec of a file that does not exist yet."""

TRAINING_DEPTH = 100
"""Candidates of each training query by default."""


class References:
    """Resolves the names of a grid; every method raises ConfigError at the name's position."""

    def __init__(
        self, grid: Grid, file: YamlFile, data_home: Path | None, own_folders: Sequence[Path] = ()
    ) -> None:
        """`own_folders` are additional folders that paths of the grid may lead to."""
        self.grid, self.source = grid, file
        self.folder = _absolute(file.path).parent
        self.allowed = [self.folder, Path.cwd(), *own_folders, *([data_home] if data_home else [])]
        self.absent: dict[str, str] = {}
        """Files that must exist before jobs can be stored, with descriptions."""

    def build(self, where: Where, kind: type[Model], **values: Any) -> Model:
        """A spec of this kind; errors are positioned in the block at `where`."""
        try:
            return kind(**values)
        except ValidationError as problem:
            raise located(problem, self.source, where) from problem

    def path(self, where: Where, text: str, *, must_exist: bool = True) -> Path:
        """An absolute path inside the allowed folders; relative ones start at the grid's folder."""
        path = _absolute(self.folder / text)
        if not any(path.is_relative_to(folder) for folder in self.allowed):
            folders = ", ".join(map(str, dict.fromkeys(self.allowed)))
            raise self.source.error(
                where,
                f"{path} lies outside the allowed folders ({folders}): name its folder with "
                "--data-home and write ${data_home}/…",
            )
        try:
            if must_exist and not path.exists():
                hint = f"there is no folder {path.parent}"
                if path.parent.is_dir():
                    hint = nearest(path.name, [other.name for other in path.parent.iterdir()])
                raise self.source.error(where, f"there is no {path}: {hint}")
        except OSError as problem:
            raise self.source.error(where, f"{path}: {problem.strerror}") from problem
        return path

    def file(self, where: Where, declared: FileSpec) -> FileSpec:
        """The file with its absolute path; it may be missing if its checksum is declared."""
        known = bool(declared.md5 or declared.sha256)
        path = self.path((*where, "path"), declared.path, must_exist=not known)
        if path.is_dir():
            raise self.source.error((*where, "path"), f"{path} is a folder; a file is needed")
        return declared.model_copy(update={"path": str(path)})

    def model(self, where: Where, model: ModelSpec, use: str = "backbone") -> ModelSpec:
        """The model with the absolute path of its folder, if it has one; `use` as in `refusal`."""
        if model.folder is not None:
            known = model.sha256 is not None
            path = self.path((*where, "folder"), model.folder, must_exist=not known)
            model = model.model_copy(update={"folder": str(path)})
        reads_layout = use in ("backbone", "cross_encoder")
        layout = self.grid.evaluation.layout if reads_layout else "auto"
        if problem := refusal(model, use, layout):
            key, message = problem
            block = ("evaluation",) if key == "layout" else where
            raise self.source.error((*block, key) if key else block, message)
        return model

    def collection(self, where: Where, name: str) -> CollectionSpec:
        """The collection named `apidocs/test`, `irds:<id>` or as in the grid's `collections`."""
        if name in self.grid.collections:
            return self._own_collection(name, self.grid.collections[name])
        if name in APIDOCS:
            split = name.removeprefix("apidocs/")
            return self.build(where, ApidocsSpec, name=name, split=split)
        if name.startswith("irds:"):
            return self._irds(where, name.removeprefix("irds:"))
        known = [*self.grid.collections, *APIDOCS]
        raise self.source.error(
            where,
            f"unknown collection {name!r}: {nearest(name, known)} (write data sets of ir_datasets "
            "as irds:<id>)",
        )

    def suite(self, where: Where, name: str) -> list[CollectionSpec]:
        """The collections of a named suite."""
        if name not in SUITES:
            raise self.source.unknown(where, "suite", name, SUITES)
        return list(suite(name, self._home()))

    def _own_collection(self, name: str, entry: Collection) -> CollectionSpec:
        where: Where = ("collections", name)
        if entry.irds:
            return self._irds((*where, "irds"), entry.irds, name, entry.identical_ids)
        identical_ids = entry.identical_ids or "keep"
        if entry.folder:
            path = self.path((*where, "folder"), entry.folder)
            try:
                folder_files(path, entry.split)
            except DataError as problem:
                raise self.source.error((*where, "split"), str(problem)) from problem
            return FolderSpec(
                name=name, path=str(path), split=entry.split, identical_ids=identical_ids
            )
        files = {
            key: self.file((*where, key), getattr(entry, key))
            for key in ("documents", "queries", "qrels")
        }
        return self.build(where, FilesSpec, name=name, identical_ids=identical_ids, **files)

    def _irds(
        self, where: Where, irds_id: str, name: str = "", identical_ids: IdenticalIds | None = None
    ) -> IrdsSpec:
        import ir_datasets

        try:
            ir_datasets.registry[irds_id]  # also creates data sets known by a pattern
        except KeyError as problem:
            known, parent = list(ir_datasets.registry), irds_id.rpartition("/")[0]
            splits = [each for each in known if each.startswith(f"{parent}/")]
            hint = nearest(irds_id, known)
            if "/" in parent and splits:
                hint = f"{parent} has {', '.join(splits)}"
            raise self.source.error(
                where, f"ir_datasets has no data set {irds_id!r}: {hint}"
            ) from problem
        return dataset(irds_id, name, self._home(), identical_ids)

    def _home(self) -> str | None:
        home = self.grid.ir_datasets_home
        return str(self.path(("ir_datasets_home",), home)) if home else None

    def first_stages(self, collection: str, role: Role) -> dict[str, FirstStageSpec]:
        """The first stages of a collection by their names in reports: its own, else the role's.

        A validation has one.
        """
        validation = self.grid.validation
        own = self.grid.collections.get(collection)
        where: Where = ("evaluation", "first_stage")
        stages = self.grid.evaluation.first_stage
        if own and own.first_stage:
            where, stages = ("collections", collection, "first_stage"), own.first_stage
        elif role == "validation" and validation and validation.first_stage:
            where, stages = ("validation", "first_stage"), (validation.first_stage,)
        found: dict[str, FirstStageSpec] = {}
        for place, stage in enumerate(stages[:1] if role == "validation" else stages):
            here = where if len(stages) == 1 else (*where, place)
            label = stage.label or ("BM25" if stage.bm25 else "first stage")
            spec = self._first_stage(here, stage, collection)
            if label in found or spec in found.values():
                message = f"two first stages are called {label!r}: set a different `label`"
                if label not in found:
                    message = f"{label!r} is the same first stage as another of this list"
                raise self.source.error(here, message)
            found[label] = spec
        return found

    def _first_stage(self, where: Where, stage: FirstStage, collection: str) -> FirstStageSpec:
        if stage.bm25:
            return stage.bm25
        if stage.scoreddocs:
            own = self.grid.collections.get(collection)
            if collection in APIDOCS or (own and not own.irds):
                message = f"{collection} has no scoreddocs, only data sets of ir_datasets have: "
                raise self.source.error(where, f"{message}use bm25 or a run")
            return ScoredDocsSpec()
        if learned := stage.dense or stage.splade:
            model = self.model((*where, learned.type, "model"), learned.model, learned.type)
            return learned.model_copy(update={"model": model})
        if stage.run:
            return RunSpec(file=self.file((*where, "run"), stage.run), order=stage.order)
        assert stage.runs
        folder = self.path((*where, "runs"), stage.runs, must_exist=False)
        stem = collection.replace("/", "-")
        for name in (f"{stem}.run.gz", f"{stem}.run"):
            if (folder / name).exists():
                return RunSpec(file=FileSpec(path=str(folder / name)), order=stage.order)
        path = str(folder / f"{stem}.run.gz")
        self.absent[path] = f"the first stage's TREC run of {collection!r}"
        return RunSpec(file=FileSpec(path=path, sha256=ABSENT), order=stage.order)

    def training_collection(self, teacher: str) -> CollectionSpec:
        """The collection of a teacher's queries and documents."""
        entry = self.grid.teachers[teacher]
        if entry.jsonl:
            file = self._teacher_file(teacher, entry, "jsonl")
            return JsonlSpec(name=Path(entry.jsonl).name, file=file)
        if entry.parquet and entry.columns and entry.columns.texts:
            file = self._teacher_file(teacher, entry, "parquet")
            return ParquetSpec(name=teacher, file=file, columns=entry.columns)
        if entry.collection:
            return self.collection(("teachers", teacher, "collection"), entry.collection)
        name = self.grid.training.get("collection")
        if not isinstance(name, str):
            raise self.source.error(
                ("training", "collection"),
                "training.collection must name the collection to train on, such as apidocs/train",
            )
        return self.collection(("training", "collection"), name)

    def training_candidates(self, teacher: str) -> tuple[FirstStageSpec, int] | None:
        """First stage and depth of the candidates that a teacher needs; None if it needs none."""
        entry = self.grid.teachers[teacher]
        if entry.run != "bm25" and not entry.model:
            return None
        if entry.over == "bm25":
            return Bm25Spec(), entry.depth or TRAINING_DEPTH
        over = self.grid.teachers.get(entry.over)
        if over is None or not over.run:
            runs = [name for name, other in self.grid.teachers.items() if other.run]
            hint = nearest(entry.over, ["bm25", *runs])
            message = f"over: {entry.over!r} is neither bm25 nor a teacher with a run: {hint}"
            raise self.source.error(("teachers", teacher, "over"), message)
        depth = entry.depth or over.depth or TRAINING_DEPTH
        if over.run == "bm25":
            return Bm25Spec(), depth
        return RunSpec(file=self._teacher_file(entry.over, over, "run"), order=over.order), depth

    def teacher(self, name: str) -> TeacherSpec:
        """The teacher's spec in a training."""
        entry = self.grid.teachers[name]
        has_candidates = entry.run == "bm25" or bool(entry.model)
        sampling = {"signal", *SamplingSpec.model_fields} - {"depth"}
        return self.build(
            ("teachers", name),
            TeacherSpec,
            source=self._teacher_source(name, entry),
            depth=None if has_candidates else entry.depth,
            **entry.model_dump(include=sampling),
        )

    def _teacher_source(
        self, name: str, entry: Teacher, role: str = "teacher"
    ) -> Mapping[str, Any]:
        if entry.run == "bm25":
            return {"type": "candidates"}
        if entry.model:
            return {"type": "teach", "role": role}
        if entry.mean_of:
            self.names(("teachers", name, "mean_of"), entry.mean_of, self.grid.teachers)
            parts = [
                self._teacher_source(part, self.grid.teachers[part], f"teacher_{place}")
                for place, part in enumerate(entry.mean_of, 1)
            ]
            return {"type": "mean", "parts": parts}
        if entry.source:
            source = self._irds(("teachers", name, "source"), entry.source.removeprefix("irds:"))
            return {"type": "docpairs", "id": source.id}
        key = next(key for key in FILE_KEYS if getattr(entry, key))
        options = set(FORMATS[key].model_fields) - {"type", "file"}
        file = self._teacher_file(name, entry, key)
        return {"type": key, "file": file, **entry.model_dump(include=options)}

    def _teacher_file(self, name: str, entry: Teacher, key: str) -> FileSpec:
        declared = FileSpec(path=getattr(entry, key), md5=entry.md5, sha256=entry.sha256)
        where: Where = ("teachers", name, key)
        return self._parquet(where, declared) if key == "parquet" else self.file(where, declared)

    def _parquet(self, where: Where, declared: FileSpec) -> FileSpec:
        """Parquet files: one, a folder, a pattern, or a commit on the Hugging Face Hub."""
        if declared.path.startswith(HUB):
            try:
                return declared.model_copy(update={"path": from_hub(declared.path, False)[0]})
            except DataError as problem:
                self.absent[declared.path] = (
                    f"the newest commit of the data set is unknown ({problem})"
                )
                return declared
        path = self.path(where, declared.path, must_exist=False)
        if not (declared.md5 or declared.sha256 or any(map(Path.exists, parquet_files(path)))):
            raise self.source.error(where, f"there are no Parquet files at {path}")
        return declared.model_copy(update={"path": str(path)})

    def names(self, where: Where, given: Sequence[str | int], known: Iterable[str | int]) -> None:
        """Check that all names or seeds are known and none is repeated."""
        for place, name in enumerate(given):
            if name not in known:
                kind = str(where[-1]).rstrip("s")
                raise self.source.unknown((*where, place), kind, str(name), [*map(str, known)])
            if name in given[:place]:
                raise self.source.error((*where, place), f"{name!r} is named twice")


def _absolute(path: Path) -> Path:
    # Not resolve(): a data folder may consist of links to other disks.
    return Path(os.path.abspath(path))  # noqa: PTH100


class Step(NamedTuple):
    """One training of a cell; all but the last are its preceding stages."""

    objective: str
    """An entry of the grid, or a loss."""
    teacher: str
    spec: ObjectiveSpec
    settings: dict[str, Any]
    """Training settings of the stage."""
    where: Where


def check_objectives(refs: References) -> None:
    """Check every entry of `objectives:`: losses, parameters, teachers and stages."""
    list(OBJECTIVES)  # raises if two installed packages register one name
    for name, entry in refs.grid.objectives.items():
        with refs.source.collecting():
            _check_objective(refs, name, entry)


def _check_objective(refs: References, name: str, entry: Objective) -> None:
    others = sorted(entry.model_fields_set - {"stages"}) + sorted(entry.training)
    if entry.stages and others:
        other = others[0]
        message = f"{other!r} belongs in a stage: an objective with stages has no other keys"
        raise refs.source.error(("objectives", name, other), message, at_key=True)
    blocks: Sequence[Objective | Stage] = entry.stages or (entry,)
    steps = steps_of(refs, name, "")
    for step, block in zip(steps, blocks, strict=True):
        where, teachers = (*step.where, "teachers"), block.teachers or ()
        refs.names(where, teachers, refs.grid.teachers)
        if step is steps[-1]:
            continue
        if len(teachers) > 1:
            message = "a stage before the last has one teacher: list several in the last one"
            raise refs.source.error(where, message)
        if reason := mismatch(refs, step.objective, step.spec, step.teacher):
            raise refs.source.error(where, reason)


def mismatch(refs: References, objective: str, spec: ObjectiveSpec, teacher: str) -> str | None:
    """The reason why a teacher cannot teach an objective; None if it can."""
    entry = refs.grid.teachers[teacher]
    if entry.signal not in spec.signals:
        usable = " or ".join(sorted(spec.signals))
        return f"{objective} learns from {usable}; {teacher} gives {entry.signal}"
    if not entry.lists and not spec.pointwise:
        return f"{objective} compares documents; {teacher} gives rows with one each"
    return None


def steps_of(refs: References, name: str, teacher: str) -> list[Step]:
    """The trainings of a cell in sequence; an objective without stages has one."""
    entry = refs.grid.objectives[name]
    if not entry.stages:
        return [Step(name, teacher, _loss(refs, name), {}, ("objectives", name))]
    steps = []
    for place, stage in enumerate(entry.stages):
        where: Where = ("objectives", name, "stages", place)
        taught = teacher if place == len(entry.stages) - 1 else stage.teachers[0]
        spec = _stage_loss(refs, where, stage)
        steps.append(Step(stage.objective, taught, spec, stage.training, where))
    return steps


def _loss(refs: References, name: str) -> ObjectiveSpec:
    """The loss or sum of losses of an entry without stages."""
    entry = refs.grid.objectives[name]
    where: Where = ("objectives", name)
    loss = entry.loss or name
    if loss not in OBJECTIVES:
        if entry.loss:
            raise refs.source.unknown((*where, "loss"), "loss", loss, OBJECTIVES)
        raise refs.source.unknown(where, "objective", name, OBJECTIVES, at_key=True)
    terms = []
    # Sorted by name, so that the order of a sum changes no identity.
    for other, term in sorted(entry.plus.items()):
        here = (*where, "plus", other)
        if other not in OBJECTIVES:
            raise refs.source.unknown(here, "loss", other, OBJECTIVES, at_key=True)
        values = {"weight": term.weight, "parameters": _changed(other, term.parameters)}
        terms.append(refs.build((*here, "parameters"), TermSpec, name=other, **values))
    here, changed = (*where, "parameters"), _changed(loss, entry.parameters)
    spec = refs.build(here, ObjectiveSpec, name=loss, parameters=changed, plus=tuple(terms))
    if not spec.signals:
        message = f"no teacher's signal feeds {' and '.join((loss, *sorted(entry.plus)))} together"
        raise refs.source.error((*where, "plus"), message, at_key=True)
    return spec


def _stage_loss(refs: References, where: Where, stage: Stage) -> ObjectiveSpec:
    named = refs.grid.objectives.get(stage.objective)
    if named and named.stages:
        message = f"{stage.objective!r} has stages itself: list them here"
        raise refs.source.error((*where, "objective"), message)
    if named and not stage.parameters:
        return _loss(refs, stage.objective)
    loss = (named.loss or stage.objective) if named else stage.objective
    if loss not in OBJECTIVES:
        known = {**refs.grid.objectives, **OBJECTIVES}
        raise refs.source.unknown((*where, "objective"), "objective", loss, known)
    changed = _changed(loss, stage.parameters)
    return refs.build((*where, "parameters"), ObjectiveSpec, name=loss, parameters=changed)


def _changed(loss: str, given: dict[str, float]) -> dict[str, float]:
    """The parameters that differ from the loss's defaults: only these count in identities."""
    defaults = OBJECTIVES[loss].parameters
    return {key: value for key, value in given.items() if value != defaults.get(key)}

"""What the names and paths in a grid file stand for, as specs; nothing is read but the grid.

What the entries of `objectives:` stand for: losses, sums of losses, and stages of these.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from xsweep.evaluator.data.suites import SUITES, suite
from xsweep.evaluator.specs import (
    ApidocsSpec,
    Bm25Spec,
    CollectionSpec,
    FileSpec,
    FilesSpec,
    FirstStageSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
    ModelSpec,
    RunSpec,
    ScoredDocsSpec,
)
from xsweep.orchestrator.grid.load import located
from xsweep.orchestrator.grid.schema import Collection, FirstStage, Grid, Objective, Stage, Teacher
from xsweep.orchestrator.grid.yaml import Where, YamlFile, nearest
from xsweep.trainer.objectives import OBJECTIVES, Signal
from xsweep.trainer.specs import ObjectiveSpec, TeacherSpec, TermSpec
from xsweep.trainer.teachers.formats import FILE_KEYS, FORMATS

Model = TypeVar("Model", bound=BaseModel)


APIDOCS = tuple(f"apidocs/{split}" for split in ("train", "validation", "test"))


ABSENT = "0" * 64
"""Stands for the checksum of a file that is not there yet."""


Role = Literal["evaluation", "validation"]


TRAINING_DEPTH = 100
"""Candidates of each training query where a teacher over BM25 names no depth."""


class References:
    """Gives a grid's names their meaning; every method raises ConfigError at the name's place."""

    def __init__(
        self,
        grid: Grid,
        file: YamlFile,
        data_home: Path | None,
        own_folders: Sequence[Path] = (),
    ) -> None:
        """`own_folders` are further places that the grid's paths may lead to."""
        self.grid, self.source = grid, file
        self.folder = _absolute(file.path).parent
        self.allowed = [self.folder, Path.cwd(), *own_folders, *([data_home] if data_home else [])]
        self.absent: dict[str, str] = {}
        """Files that must be there before jobs can be stored, and what they are."""

    def build(self, where: Where, kind: type[Model], **values: Any) -> Model:
        """A spec of this kind, its errors placed at the block that it comes from."""
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
        """The file with its absolute path; one with a declared checksum may still be absent."""
        known = bool(declared.md5 or declared.sha256)
        path = self.path((*where, "path"), declared.path, must_exist=not known)
        if path.is_dir():
            raise self.source.error((*where, "path"), f"{path} is a folder; a file is needed")
        return declared.model_copy(update={"path": str(path)})

    def model(self, where: Where, model: ModelSpec) -> ModelSpec:
        """The model with the absolute path of its folder, where it has one."""
        if model.folder is None:
            return model
        known = model.sha256 is not None
        path = self.path((*where, "folder"), model.folder, must_exist=not known)
        return model.model_copy(update={"folder": str(path)})

    def collection(self, where: Where, name: str) -> CollectionSpec:
        """The collection that `apidocs/test`, `irds:<id>` or a name of the grid's stands for."""
        if name in self.grid.collections:
            return self._own_collection(name, self.grid.collections[name])
        if name in APIDOCS:
            split = name.removeprefix("apidocs/")
            return self.build(where, ApidocsSpec, name=name, split=split)
        if name.startswith("irds:"):
            dataset = name.removeprefix("irds:")
            return self._irds(where, dataset, dataset)
        known = [*self.grid.collections, *APIDOCS]
        raise self.source.error(
            where,
            f"unknown collection {name!r}: {nearest(name, known)} (data sets of ir_datasets are "
            "written irds:<id>)",
        )

    def suite(self, where: Where, name: str) -> list[CollectionSpec]:
        """The collections of a named suite."""
        if name not in SUITES:
            raise self.source.error(where, f"unknown suite {name!r}: {nearest(name, SUITES)}")
        return list(suite(name, self._home()))

    def _own_collection(self, name: str, entry: Collection) -> CollectionSpec:
        where: Where = ("collections", name)
        if entry.irds:
            return self._irds((*where, "irds"), name, entry.irds)
        if entry.folder:
            path = self.path((*where, "folder"), entry.folder)
            return FolderSpec(name=name, path=str(path), split=entry.split)
        assert entry.documents
        assert entry.queries
        assert entry.qrels
        return FilesSpec(
            name=name,
            documents=self.file((*where, "documents"), entry.documents),
            queries=self.file((*where, "queries"), entry.queries),
            qrels=self.file((*where, "qrels"), entry.qrels),
        )

    def _irds(self, where: Where, name: str, dataset: str) -> IrdsSpec:
        import ir_datasets

        try:
            ir_datasets.registry[dataset]  # also makes those that are known by a pattern
        except KeyError as problem:
            hint = nearest(dataset, list(ir_datasets.registry))
            raise self.source.error(
                where, f"ir_datasets has no data set {dataset!r}: {hint}"
            ) from problem
        return IrdsSpec(name=name, id=dataset, home=self._home())

    def _home(self) -> str | None:
        home = self.grid.ir_datasets_home
        return str(self.path(("ir_datasets_home",), home)) if home else None

    def first_stage_label(self, collection: str) -> str:
        """What reports call a collection's first stage."""
        _, stage = self._first_stage_of(collection, "evaluation")
        return stage.label or ("BM25" if stage.bm25 else "first stage")

    def _first_stage_of(self, collection: str, role: Role) -> tuple[Where, FirstStage]:
        validation = self.grid.validation
        own = self.grid.collections.get(collection)
        if own and own.first_stage:
            return ("collections", collection, "first_stage"), own.first_stage
        if role == "validation" and validation and validation.first_stage:
            return ("validation", "first_stage"), validation.first_stage
        return ("evaluation", "first_stage"), self.grid.evaluation.first_stage

    def first_stage(self, collection: str, role: Role) -> FirstStageSpec:
        """What is re-ranked on a collection: its own first stage, else the role's."""
        where, stage = self._first_stage_of(collection, role)
        if stage.bm25:
            return stage.bm25
        if stage.scoreddocs:
            return ScoredDocsSpec()
        for kind, learned in (("dense", stage.dense), ("splade", stage.splade)):
            if learned:
                model = self.model((*where, kind, "model"), learned.model)
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
        """Where a teacher's queries and documents are."""
        entry = self.grid.teachers[teacher]
        if entry.jsonl:
            file = self._teacher_file(teacher, entry, "jsonl")
            return JsonlSpec(name=Path(entry.jsonl).name, file=file)
        own = entry.collection
        if own:
            return self.collection(("teachers", teacher, "collection"), own)
        name = self.grid.training.get("collection")
        if not isinstance(name, str):
            raise self.source.error(
                ("training", "collection"),
                "training.collection must name the collection to train on, such as apidocs/train",
            )
        return self.collection(("training", "collection"), name)

    def training_candidates(self, teacher: str) -> tuple[FirstStageSpec, int] | None:
        """First stage and depth of the candidates job that a teacher needs, None without one."""
        entry = self.grid.teachers[teacher]
        if entry.run == "bm25":
            return Bm25Spec(), entry.depth or TRAINING_DEPTH
        if not entry.model:
            return None
        where: Where = ("teachers", teacher, "over")
        if entry.over == "bm25":
            return Bm25Spec(), entry.depth or TRAINING_DEPTH
        over = self.grid.teachers.get(entry.over)
        if over is None or not over.run:
            runs = [name for name, other in self.grid.teachers.items() if other.run]
            raise self.source.error(
                where,
                f"over: {entry.over!r} is neither bm25 nor a teacher with a run: "
                f"{nearest(entry.over, ['bm25', *runs])}",
            )
        depth = entry.depth or over.depth or TRAINING_DEPTH
        if over.run == "bm25":
            return Bm25Spec(), depth
        return RunSpec(file=self._teacher_file(entry.over, over, "run"), order=over.order), depth

    def teacher(self, name: str) -> TeacherSpec:
        """The teacher as a training sees it."""
        entry = self.grid.teachers[name]
        has_candidates = entry.run == "bm25" or bool(entry.model)
        sampling = {"negatives", "list_size", "add_positives", "relevant_grade", "signal"}
        return self.build(
            ("teachers", name),
            TeacherSpec,
            source=self._teacher_source(name, entry),
            depth=None if has_candidates else entry.depth,
            **entry.model_dump(include=sampling),
        )

    def _teacher_source(self, name: str, entry: Teacher) -> Mapping[str, Any]:
        if entry.run == "bm25":
            return {"type": "candidates"}
        if entry.model:
            return {"type": "teach"}
        if entry.source:
            dataset = entry.source.removeprefix("irds:")
            self._irds(("teachers", name, "source"), "", dataset)
            return {"type": "docpairs", "id": dataset}
        key = next(key for key in FILE_KEYS if getattr(entry, key))
        options = set(FORMATS[key].source.model_fields) - {"type", "file"}
        file = self._teacher_file(name, entry, key)
        return {"type": key, "file": file, **entry.model_dump(include=options)}

    def _teacher_file(self, name: str, entry: Teacher, key: str) -> FileSpec:
        declared = FileSpec(path=getattr(entry, key), md5=entry.md5, sha256=entry.sha256)
        return self.file(("teachers", name, key), declared)

    def names(self, where: Where, given: tuple[str, ...], known: Mapping[str, object]) -> None:
        """Check that all names are known and none is given twice."""
        for place, name in enumerate(given):
            if name not in known:
                kind = str(where[-1]).rstrip("s")
                raise self.source.error(
                    (*where, place), f"unknown {kind} {name!r}: {nearest(name, known.keys())}"
                )
            if name in given[:place]:
                raise self.source.error((*where, place), f"{name!r} is named twice")


def _absolute(path: Path) -> Path:
    # Not resolve(): a data folder may well be made of links to other disks.
    return Path(os.path.abspath(path))  # noqa: PTH100


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

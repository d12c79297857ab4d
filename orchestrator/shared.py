"""What the cells of a grid share: test collections, validation and teachers, with their jobs."""

from typing import Any, NamedTuple

from pydantic import BaseModel

from evaluator.measure_names import parse_measure
from evaluator.specs import (
    CollectionSpec,
    FirstStageSpec,
    ModelSpec,
    TeacherModelSpec,
    TeachSpec,
)
from orchestrator.identity import canonical, significant
from orchestrator.jobgraph import JobGraph, model_name
from orchestrator.pins import Pins
from orchestrator.references import References, Role
from orchestrator.yamlfile import Where
from trainer.specs import TeacherSpec, ValidationSpec, validation_roles
from xsweep import ConfigError, SetupError


class Tested(NamedTuple):
    """A collection that models are tested on."""

    collection: CollectionSpec
    stage: FirstStageSpec
    candidates: str
    """Identity of the job that gives the first stage's candidates."""


class Validated(NamedTuple):
    """How checkpoints are selected."""

    spec: ValidationSpec
    parents: dict[str, str]
    """The jobs that give its candidates, by their role in a training."""


class Taught(NamedTuple):
    """A teacher as trainings see it."""

    spec: TeacherSpec
    collection: CollectionSpec
    parents: dict[str, str]
    """The jobs that make its signal, by their role in a training."""
    model: TeacherModelSpec | None
    """What a teach job scores with."""
    label: str
    """What reports call that model."""


class Shared:
    """Adds the jobs that cells share to a graph; errors stand at their place in the grid file."""

    def __init__(self, refs: References, pins: Pins, graph: JobGraph) -> None:
        self.refs, self.pins, self.graph, self.grid = refs, pins, graph, refs.grid

    def scoring(self, **lengths: int) -> dict[str, Any]:
        """How evaluations and teachers score pairs; lengths as in `training` unless given."""
        general = {
            key: value
            for key, value in self.grid.training.items()
            if key in ("query_tokens", "document_tokens")
        }
        evaluation = self.grid.evaluation
        return {
            **general,
            **lengths,
            "precision": evaluation.precision,
            "batch_tokens": evaluation.batch_tokens,
            "layout": evaluation.layout,
        }

    def model(self, where: Where, model: ModelSpec) -> ModelSpec:
        """The model, pinned to its version or its folder's checksum."""
        try:
            return self.pins.pin(self.refs.model(where, model))
        except SetupError as problem:
            raise self.refs.source.error(where, str(problem)) from problem

    def measure(self, where: Where, name: str) -> str:
        """The canonical name of a measure."""
        try:
            return str(parse_measure(name))
        except ConfigError as problem:
            raise self.refs.source.error(where, str(problem)) from problem

    def tests(self) -> list[Tested]:
        """The test collections, in the grid's order, each with its candidates."""
        evaluation = self.grid.evaluation
        found: list[tuple[Where, CollectionSpec]] = []
        for place, name in enumerate(evaluation.collections):
            where: Where = ("evaluation", "collections", place)
            found.append((where, self.refs.collection(where, name)))
        for place, name in enumerate(evaluation.suites):
            where = ("evaluation", "suites", place)
            found += [(where, collection) for collection in self.refs.suite(where, name)]
        if not found:
            raise self.refs.source.error(
                ("evaluation",), "evaluation needs collections or suites, such as apidocs/test"
            )
        tests: dict[str, Tested] = {}
        for where, collection in found:
            test = Tested(*self._ranked(collection, evaluation.depth, "evaluation"))
            twin = tests.setdefault(_content(test.collection), test)
            if twin is not test:
                raise self.refs.source.error(
                    where, f"{collection.name!r} is tested twice: it is {twin.collection.name!r}"
                )
        return list(tests.values())

    def validation(self) -> Validated | None:
        """The validation that trainings run, and the jobs that give its candidates."""
        wanted = self.grid.validation
        if wanted is None:
            return None
        where: Where = ("validation", "collection" if wanted.collection else "suite")
        if wanted.collection:
            collections = [self.refs.collection(where, wanted.collection)]
        else:
            collections = self.refs.suite(where, wanted.suite or "")
        ranked = [self._ranked(each, wanted.depth, "validation") for each in collections]
        pinned, *further = [collection for collection, _, _ in ranked]
        spec = ValidationSpec(
            collection=pinned,
            further=tuple(further),
            measure=self.measure(("validation", "measure"), wanted.measure),
            every_steps=wanted.every_steps,
            depth=wanted.depth,
            patience=wanted.patience,
        )
        parents = {validation_roles(place)[0]: each[2] for place, each in enumerate(ranked)}
        return Validated(spec, parents)

    def validation_tokens(
        self, validation: Validated, tokenizer: ModelSpec, used_tokens: int
    ) -> dict[str, str]:
        """The token stores of the validation's collections, by their role in a training."""
        return {
            validation_roles(place)[1]: self.graph.tokens(collection, tokenizer, used_tokens)
            for place, collection in enumerate(validation.spec.collections)
        }

    def _ranked(
        self, collection: CollectionSpec, depth: int, role: Role
    ) -> tuple[CollectionSpec, FirstStageSpec, str]:
        pinned = self.pins.pin(collection)
        stage = self.pins.pin(self.refs.first_stage(collection.name, role))
        return pinned, stage, self.graph.candidates(pinned, stage, depth)

    def teacher(self, name: str) -> Taught:
        """A teacher, with the jobs for its candidates and for its model's scores."""
        entry = self.grid.teachers[name]
        collection = self.pins.pin(self.refs.training_collection(name))
        spec = self.pins.pin(self.refs.teacher(name))
        wanted = self.refs.training_candidates(name)
        if wanted is None:
            return Taught(spec, collection, {}, None, name)
        stage, depth = wanted
        candidates = self.graph.candidates(collection, self.pins.pin(stage), depth)
        if not entry.model:
            return Taught(spec, collection, {"candidates": candidates}, None, name)
        models = tuple(
            self.model(("teachers", name, "model", place), model)
            for place, model in enumerate(entry.model)
        )
        model = TeacherModelSpec(type=entry.type, models=models)
        teach = self.refs.build(
            ("training",), TeachSpec, collection=collection, model=model, **self.scoring()
        )
        label = entry.label or "+".join(map(model_name, models))
        scores = self.graph.add(
            "teach",
            f"teach {label} [{collection.name}]",
            teach,
            parents={"candidates": candidates},
            cost_s=600,
        )
        return Taught(spec, collection, {"teacher": scores}, model, label)

    def keep_apart(
        self,
        tests: list[Tested],
        validation: Validated | None,
        teachers: dict[str, Taught],
    ) -> None:
        """Refuse to train or to select checkpoints on a collection that is tested on."""
        tested = {_content(test.collection) for test in tests}
        used: list[tuple[Where, str, CollectionSpec]] = [
            (("teachers", name), "trains on", taught.collection)
            for name, taught in teachers.items()
        ]
        if validation:
            used += [
                (("validation",), "selects checkpoints on", collection)
                for collection in validation.spec.collections
            ]
        for where, verb, collection in used:
            if _content(collection) in tested:
                raise self.refs.source.error(
                    where, f"this {verb} {collection.name!r}, which is a test collection"
                )


def _content(spec: BaseModel) -> str:
    return canonical(significant(spec))

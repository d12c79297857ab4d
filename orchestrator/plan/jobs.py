"""What the cells of a grid share: test collections, validation and teachers, with their jobs.

The evaluations of a grid: of first stages, of models that teach, and of every training.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from xsweep.errors import ConfigError, SetupError
from xsweep.evaluator.specs import (
    CollectionSpec,
    EvaluateSpec,
    FirstStageScorer,
    FirstStageSpec,
    ModelScorer,
    ModelSpec,
    RunScorer,
    ScorerSpec,
    ScoringSpec,
    TeacherModelSpec,
    TeachSpec,
    parse_measure,
)
from xsweep.orchestrator.grid.cells import Cell
from xsweep.orchestrator.grid.resolve import References, Role
from xsweep.orchestrator.grid.schema import TrainingSettings
from xsweep.orchestrator.grid.yaml import Where
from xsweep.orchestrator.plan.graph import NO_PARENTS, JobGraph, model_name
from xsweep.orchestrator.plan.identity import ChecksumCache, canonical, significant
from xsweep.trainer.specs import TeacherSpec, ValidationSpec, validation_roles


class TestSet(NamedTuple):
    """A collection that models are tested on."""

    collection: CollectionSpec
    stage: FirstStageSpec
    candidates: str
    """Identity of the job that gives the first stage's candidates."""


class ValidationPlan(NamedTuple):
    """How checkpoints are selected."""

    spec: ValidationSpec
    parents: dict[str, str]
    """The jobs that give its candidates, by their role in a training."""


class ResolvedTeacher(NamedTuple):
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

    def __init__(self, refs: References, pins: ChecksumCache, graph: JobGraph) -> None:
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

    def tests(self) -> list[TestSet]:
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
        tests: dict[str, TestSet] = {}
        for where, collection in found:
            test = TestSet(*self._ranked(collection, evaluation.depth, "evaluation"))
            twin = tests.setdefault(_content(test.collection), test)
            if twin is not test:
                raise self.refs.source.error(
                    where, f"{collection.name!r} is tested twice: it is {twin.collection.name!r}"
                )
        return list(tests.values())

    def validation(self) -> ValidationPlan | None:
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
        return ValidationPlan(spec, parents)

    def validation_tokens(
        self, validation: ValidationPlan, tokenizer: ModelSpec, used_tokens: int
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

    def teacher(self, name: str) -> ResolvedTeacher:
        """A teacher, with the jobs for its candidates and for its model's scores."""
        entry = self.grid.teachers[name]
        collection = self.pins.pin(self.refs.training_collection(name))
        spec = self.pins.pin(self.refs.teacher(name))
        wanted = self.refs.training_candidates(name)
        if wanted is None:
            return ResolvedTeacher(spec, collection, {}, None, name)
        stage, depth = wanted
        candidates = self.graph.candidates(collection, self.pins.pin(stage), depth)
        if not entry.model:
            return ResolvedTeacher(spec, collection, {"candidates": candidates}, None, name)
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
        )
        return ResolvedTeacher(spec, collection, {"teacher": scores}, model, label)

    def check_no_test_leakage(
        self,
        tests: list[TestSet],
        validation: ValidationPlan | None,
        teachers: dict[str, ResolvedTeacher],
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


class Evaluations:
    """Adds evaluations on a grid's test collections to a graph."""

    def __init__(self, refs: References, shared: Shared, graph: JobGraph) -> None:
        self.refs, self.shared, self.graph = refs, shared, graph
        self.settings = refs.grid.evaluation
        self.measures = tuple(
            shared.measure(("evaluation", "measures", place), name)
            for place, name in enumerate(self.settings.measures)
        )
        self.tests = shared.tests()
        self._readings: dict[tuple[int, int], ScoringSpec] = {}
        self._specs: dict[tuple[str, str, str], EvaluateSpec] = {}

    def add_references(self, teachers: Iterable[ResolvedTeacher]) -> None:
        """The rows that runs are compared with: first stages, and the models that teach."""
        models: dict[str, tuple[str, TeacherModelSpec]] = {}
        for taught in teachers:
            if taught.model:
                models.setdefault(taught.model.model_dump_json(), (taught.label, taught.model))
        for test in self.tests:
            name = self.refs.first_stage_label(test.collection.name)
            self._add(test, name, FirstStageScorer(), {"system": "first_stage"})
        for label, model in models.values():
            labels = {"system": "teacher", "teacher": label}
            for test in self.tests:
                scoring = self.shared.scoring()
                self._add(test, label, ModelScorer(model=model), labels, **scoring)

    def add_run(
        self,
        cell: Cell,
        run: str,
        settings: TrainingSettings,
        tokenizer: ModelSpec,
    ) -> None:
        """A cell's training, whose identity is `run`, on every collection."""
        lengths = settings.query_tokens, settings.document_tokens
        scoring = self.shared.scoring(query_tokens=lengths[0], document_tokens=lengths[1])
        if lengths not in self._readings:
            self._readings[lengths] = self.refs.build(
                ("evaluation",), ScoringSpec, **scoring, **self.settings.passages
            )
        read_tokens = self._readings[lengths].read_tokens
        for test in self.tests:
            self._add(
                test,
                cell.name,
                RunScorer(),
                {"system": "run", **cell.labels},
                parents={"run": run},
                savings={"tokens": self.graph.tokens(test.collection, tokenizer, read_tokens)},
                **scoring,
            )

    def _add(
        self,
        test: TestSet,
        name: str,
        scorer: ScorerSpec,
        labels: Mapping[str, Any],
        *,
        parents: Mapping[str, str] = NO_PARENTS,
        savings: Mapping[str, str] = NO_PARENTS,
        **scoring: Any,
    ) -> None:
        place = {
            "collection": test.collection.name,
            "first_stage": self.refs.first_stage_label(test.collection.name),
            "depth": self.settings.depth,
            "order": len(self.graph.jobs),
        }
        self.graph.add(
            "evaluate",
            f"evaluate {name} [{test.collection.name}]",
            self._spec(test, scorer, scoring),
            parents={"candidates": test.candidates, **parents},
            savings=savings,
            labels={**labels, **place},
        )

    def _spec(self, test: TestSet, scorer: ScorerSpec, scoring: Mapping[str, Any]) -> EvaluateSpec:
        """The spec, which is the same for all runs that read a collection alike."""
        key = test.collection.name, scorer.model_dump_json(), repr(scoring)
        if key not in self._specs:
            self._specs[key] = self.refs.build(
                ("evaluation",),
                EvaluateSpec,
                collection=test.collection,
                scorer=scorer,
                depth=self.settings.depth,
                measures=self.measures,
                **scoring,
                **(self.settings.passages if scoring else {}),
            )
        return self._specs[key]

"""Jobs that the cells of a grid share, and the evaluations on its test collections."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from xsweep.evaluator.specs import (
    CollectionSpec,
    EvaluateSpec,
    FirstStageScorer,
    ListwiseSpec,
    ModelScorer,
    ModelSpec,
    RunScorer,
    ScorerSpec,
    TeacherModelSpec,
    TeachSpec,
)
from xsweep.orchestrator.grid.cells import Cell
from xsweep.orchestrator.grid.schema import TrainingSettings, model_name
from xsweep.orchestrator.grid.yaml import Where
from xsweep.orchestrator.plan.context import PlanContext, ResolvedTeacher, TestSet, ValidationPlan
from xsweep.orchestrator.plan.identity import canonical, significant
from xsweep.trainer.specs import ValidationSpec, validation_roles


def test_sets(context: PlanContext) -> list[TestSet]:
    """The test collections in the grid's order, once for each of their first stages."""
    refs, evaluation = context.refs, context.grid.evaluation
    named: list[tuple[Where, CollectionSpec]] = []
    for place, name in enumerate(evaluation.collections):
        where: Where = ("evaluation", "collections", place)
        named.append((where, refs.collection(where, name)))
    for place, name in enumerate(evaluation.suites):
        where = ("evaluation", "suites", place)
        named += [(where, collection) for collection in refs.suite(where, name)]
    if not named:
        message = "evaluation needs collections or suites, such as apidocs/test"
        raise refs.source.error(("evaluation",), message)
    tests: list[TestSet] = []
    names: dict[str, str] = {}
    for where, collection in named:
        pinned, name = context.pins.pin(collection), collection.name
        if twin := names.get(_content(pinned)):
            raise refs.source.error(
                where, f"duplicate test collection: {name!r} is the same data as {twin!r}"
            )
        names[_content(pinned)] = name
        stages = refs.first_stages(name, "evaluation")
        for label, stage in stages.items():
            candidates = context.candidates(pinned, context.pins.pin(stage), evaluation.depth)
            title = f"{name} ({label})" if len(stages) > 1 else name
            tests.append(TestSet(pinned, title, label, candidates))
    return tests


def validation_plan(context: PlanContext) -> ValidationPlan | None:
    """The validation of trainings with the jobs that make its candidates."""
    refs, validation = context.refs, context.grid.validation
    if validation is None:
        return None
    if validation.collection:
        collections = [refs.collection(("validation", "collection"), validation.collection)]
    else:
        collections = refs.suite(("validation", "suite"), validation.suite or "")
    pinned, *further = map(context.pins.pin, collections)
    ranked = []
    for each in (pinned, *further):
        [stage] = refs.first_stages(each.name, "validation").values()
        ranked.append(context.candidates(each, context.pins.pin(stage), validation.depth))
    spec = ValidationSpec(
        collection=pinned,
        further=tuple(further),
        **validation.model_dump(include={"measure", "every_steps", "depth", "patience"}),
    )
    parents = {validation_roles(place)[0]: job for place, job in enumerate(ranked)}
    return ValidationPlan(spec, parents)


def validation_tokens(
    context: PlanContext, validation: ValidationPlan, tokenizer: ModelSpec, used_tokens: int
) -> dict[str, str]:
    """Jobs that tokenise the validation's collections, by role in a training."""
    return {
        validation_roles(place)[1]: context.tokens(collection, tokenizer, used_tokens)
        for place, collection in enumerate(validation.spec.collections)
    }


def resolve_teacher(context: PlanContext, name: str) -> ResolvedTeacher:
    """A teacher with the jobs for its candidates and for its model's scores."""
    refs, entry = context.refs, context.grid.teachers[name]
    collection = context.pins.pin(refs.training_collection(name))
    spec = context.pins.pin(refs.teacher(name))
    if entry.mean_of:
        parts = [resolve_teacher(context, part) for part in entry.mean_of]
        if any(part.collection != collection for part in parts):
            message = "the teachers of a mean must have one collection"
            raise refs.source.error(("teachers", name, "mean_of"), message)
        roles = ((f"teacher_{place}", part.parents) for place, part in enumerate(parts, 1))
        taught = {role: given["teacher"] for role, given in roles if "teacher" in given}
        return ResolvedTeacher(spec, collection, taught, None, name)
    source = refs.training_candidates(name)
    if source is None:
        return ResolvedTeacher(spec, collection, {}, None, name)
    stage, depth = source
    candidates = context.candidates(collection, context.pins.pin(stage), depth)
    if not entry.model:
        return ResolvedTeacher(spec, collection, {"candidates": candidates}, None, name)
    served = entry.listwise and entry.listwise.server
    models = tuple(
        context.model(("teachers", name, "model", place), model, "served" if served else entry.type)
        for place, model in enumerate(entry.model)
    )
    scorer: dict[str, Any] = {"type": entry.type, "models": models, "prompt": entry.prompt}
    if entry.type == "listwise_llm" or entry.listwise:
        scorer["listwise"] = entry.listwise or ListwiseSpec()
    model = refs.build(("teachers", name), TeacherModelSpec, **scorer)
    label = entry.label or "+".join(map(model_name, models))
    settings = {"collection": collection, "model": model, **context.scoring()}
    teach = refs.build(("training",), TeachSpec, **settings)
    parents = {"candidates": candidates}
    scores = context.add("teach", f"teach {label} [{collection.name}]", teach, parents=parents)
    return ResolvedTeacher(spec, collection, {"teacher": scores}, model, label)


def check_no_test_leakage(context: PlanContext) -> None:
    """Refuse to train or to select checkpoints on a test collection."""
    tested = {_content(test.collection) for test in context.tests}
    used: list[tuple[Where, str, CollectionSpec]] = [
        (("teachers", name), "trains on", teacher.collection)
        for name, teacher in context.teachers.items()
    ]
    if context.validation:
        collections = context.validation.spec.collections
        used += [(("validation",), "selects checkpoints on", each) for each in collections]
    for where, verb, collection in used:
        if _content(collection) in tested:
            message = f"this {verb} {collection.name!r}, which is a test collection"
            raise context.refs.source.error(where, message)


def _content(spec: BaseModel) -> str:
    return canonical(significant(spec))


def add_references(context: PlanContext) -> None:
    """Add the evaluations that runs are compared with: first stages and teachers' models."""
    for test in context.tests:
        _evaluate(context, test, test.first_stage, FirstStageScorer(), {"system": "first_stage"})
    models: dict[str, tuple[str, ModelScorer]] = {}
    for teacher in context.teachers.values():
        if teacher.model:
            scorer = ModelScorer(model=teacher.model)
            models.setdefault(teacher.model.model_dump_json(), (teacher.label, scorer))
    for label, scorer in models.values():
        for test in context.tests:
            labels = {"system": "teacher", "teacher": label}
            _evaluate(context, test, label, scorer, labels, context.scoring())


def add_evaluations(
    context: PlanContext, cell: Cell, run: str, settings: TrainingSettings, tokenizer: ModelSpec
) -> None:
    """Add the evaluations of a cell's training, whose identity is `run`, on every collection."""
    scoring = context.scoring(
        query_tokens=settings.query_tokens, document_tokens=settings.document_tokens
    )
    labels = {"system": "run", **cell.labels}
    for test in context.tests:
        _evaluate(context, test, cell.name, RunScorer(), labels, scoring, {"run": run}, tokenizer)


def _evaluate(
    context: PlanContext,
    test: TestSet,
    name: str,
    scorer: ScorerSpec,
    labels: Mapping[str, Any],
    scoring: Mapping[str, Any] = {},
    parents: Mapping[str, str] = {},
    tokenizer: ModelSpec | None = None,
) -> None:
    collection, settings = test.collection, context.grid.evaluation
    # one object for all runs that read a collection alike
    key = collection.name, scorer.model_dump_json(), repr(scoring)
    if key not in context.evaluate_specs:
        windows = {"max_passages", "passage_overlap_tokens"} if scoring else set()
        context.evaluate_specs[key] = context.refs.build(
            ("evaluation",),
            EvaluateSpec,
            collection=collection,
            scorer=scorer,
            depth=settings.depth,
            measures=settings.measures,
            **scoring,
            **settings.model_dump(include=windows),
        )
    spec = context.evaluate_specs[key]
    tokens = tokenizer and context.tokens(collection, tokenizer, spec.read_tokens)
    place = {
        "collection": test.title,
        "first_stage": test.first_stage,
        "depth": settings.depth,
        "order": len(context.jobs),
    }
    context.add(
        "evaluate",
        f"evaluate {name} [{test.title}]",
        spec,
        parents={"candidates": test.candidates, **parents},
        cache_parents={"tokens": tokens} if tokens else {},
        labels={**labels, **place},
    )

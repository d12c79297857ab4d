"""The state of a plan: resolved names, and jobs each once, since equal work has one identity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from xsweep.db.jobs import NewJob
from xsweep.errors import SetupError
from xsweep.evaluator.data.collection import folder_files
from xsweep.evaluator.specs import (
    ApidocsSpec,
    CandidatesSpec,
    CollectionSpec,
    DenseSpec,
    EvaluateSpec,
    FileSpec,
    FilesSpec,
    FirstStageSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
    ModelSpec,
    ParquetSpec,
    SpladeSpec,
    TeacherModelSpec,
    TokensSpec,
)
from xsweep.orchestrator.forecast.cost_model import expected_s
from xsweep.orchestrator.grid.resolve import References
from xsweep.orchestrator.grid.schema import Need, model_name
from xsweep.orchestrator.grid.yaml import Where
from xsweep.orchestrator.plan.identity import ChecksumCache, canonical, identity_of, significant
from xsweep.orchestrator.settings import Kind
from xsweep.trainer.specs import TeacherSpec, ValidationSpec

MAX_TOKENS = 512
"""Tokens that a store keeps of a document: above most lengths, so that lengths share a store."""


class TestSet(NamedTuple):
    """A test collection with one of its first stages."""

    collection: CollectionSpec
    title: str
    """Its name in reports: `scifact`, or `scifact (BM25)` if it has several first stages."""
    first_stage: str
    """The first stage's name in reports."""
    candidates: str
    """Identity of the job that makes the first stage's candidates."""


class ValidationPlan(NamedTuple):
    """The validation that selects checkpoints."""

    spec: ValidationSpec
    parents: dict[str, str]
    """Jobs that make its candidates, by role in a training."""


class ResolvedTeacher(NamedTuple):
    """A teacher with its jobs."""

    spec: TeacherSpec
    collection: CollectionSpec
    parents: dict[str, str]
    """Jobs that make its signal, by role in a training."""
    model: TeacherModelSpec | None
    """The model of its teach job."""
    label: str
    """The model's name in reports."""


class PlanContext:
    """A plan in progress: the grid's names, its jobs with parents first, and shared inputs."""

    tests: list[TestSet]
    validation: ValidationPlan | None
    teachers: dict[str, ResolvedTeacher]

    def __init__(self, refs: References, pins: ChecksumCache) -> None:
        self.refs, self.grid, self.pins = refs, refs.grid, pins
        self.backbones: dict[str, tuple[ModelSpec, ModelSpec]] = {}
        """Pinned backbones, each with its tokenizer: one for all numbers of layers."""
        self.jobs: dict[str, NewJob] = {}
        self.evaluate_specs: dict[tuple[str, str, str], EvaluateSpec] = {}
        self._specs: dict[int, tuple[BaseModel, str, dict[str, Any]]] = {}
        """By id: a spec, kept so that no other gets its id, what decides its result, its JSON."""
        self._tokens: dict[tuple[int, int, int], tuple[object, object, str]] = {}

    def add(
        self,
        kind: Kind,
        name: str,
        spec: BaseModel,
        *,
        parents: Mapping[str, str] = {},
        cache_parents: Mapping[str, str] = {},
        same_as: BaseModel | None = None,
        labels: Mapping[str, Any] = {},
        needs: Kind | None = None,
    ) -> str:
        """Add a job unless it exists, and return its identity.

        `parents` (role to identity) change the result, `cache_parents` only save work. `needs` is
        the kind whose resources the job reserves, if not its own. `same_as` replaces the spec in
        the identity where specs differ in ways that do not matter.
        """
        _, decides, dumped = self._specs.get(id(spec)) or self._learn(spec, same_as or spec)
        key = identity_of(kind, decides, parents)
        if key not in self.jobs:
            inputs = {role: self.jobs[parent].spec for role, parent in parents.items()}
            resources = _resources(self.grid.resources.get(needs or kind, Need()))
            self.jobs[key] = NewJob(
                identity=key,
                kind=kind,
                name=name,
                spec=dumped,
                parents={**parents, **cache_parents},
                resources=resources,
                labels={**labels, "rehearsal": True} if self.grid.rehearsal else dict(labels),
                cost=expected_s(kind, dumped, inputs, resources),
            )
        return key

    def _learn(self, spec: BaseModel, decides: BaseModel) -> tuple[BaseModel, str, dict[str, Any]]:
        used = spec
        if self.grid.rehearsal:
            mark = {"rehearsal": True}
            used, decides = used.model_copy(update=mark), decides.model_copy(update=mark)
        text = canonical(significant(decides))
        self._specs[id(spec)] = spec, text, used.model_dump(mode="json")
        return self._specs[id(spec)]

    def candidates(self, collection: CollectionSpec, stage: FirstStageSpec, depth: int) -> str:
        """The job that makes a collection's first `depth` candidates of every query."""
        spec = CandidatesSpec(collection=collection, first_stage=stage, depth=depth)
        name = f"prepare candidates {stage.type}-{depth} [{collection.name}]"
        # A model that encodes every document needs the GPU that a teacher gets.
        needs: Kind = "teach" if isinstance(stage, DenseSpec | SpladeSpec) else "prepare"
        return self.add("prepare", name, spec, needs=needs)

    def tokens(self, collection: CollectionSpec, tokenizer: ModelSpec, used_tokens: int) -> str:
        """The job that tokenises a collection's documents, up to at least `used_tokens` each."""
        max_tokens = max(MAX_TOKENS, used_tokens)
        # By object id: all cells ask for the same few, and the objects are kept.
        asked = id(collection), id(tokenizer), max_tokens
        if asked not in self._tokens:
            spec = TokensSpec(documents=collection, tokenizer=tokenizer, max_tokens=max_tokens)
            documents = self.pins.pin(documents_of(collection))
            name = f"prepare tokens {model_name(tokenizer)} [{documents.name}]"
            same_as = spec.model_copy(update={"documents": documents})
            job = self.add("prepare", name, spec, same_as=same_as)
            self._tokens[asked] = collection, tokenizer, job
        return self._tokens[asked][2]

    def model(self, where: Where, model: ModelSpec, use: str = "backbone") -> ModelSpec:
        """The model, pinned to its version or its folder's checksum; `use` as in `refusal`."""
        try:
            return self.pins.pin(self.refs.model(where, model, use))
        except SetupError as problem:
            raise self.refs.source.error(where, str(problem)) from problem

    def scoring(self, **lengths: int) -> dict[str, Any]:
        """Settings by which evaluations and teachers score; lengths as in `training` by default."""
        names = ("query_tokens", "document_tokens")
        general = {name: self.grid.training[name] for name in names if name in self.grid.training}
        own = self.grid.evaluation.model_dump(include={"precision", "batch_tokens", "layout"})
        return {**general, **lengths, **own}


def documents_of(collection: CollectionSpec) -> CollectionSpec:
    """One spec for all collections with the same documents, whatever their queries."""
    collection = collection.model_copy(update={"identical_ids": "keep"})
    match collection:
        case ApidocsSpec():
            return collection.model_copy(update={"name": "apidocs", "split": "train"})
        case IrdsSpec():
            import ir_datasets

            parent = ir_datasets.docs_parent_id(collection.id)
            return collection.model_copy(update={"name": parent, "id": parent})
        case FilesSpec():
            documents = collection.documents
            return collection.model_copy(update={"queries": documents, "qrels": documents})
        case FolderSpec():
            # All splits share this file.
            files = folder_files(Path(collection.path), collection.split)
            file = FileSpec(path=str(files.documents))
            name = Path(collection.path).name
            return FilesSpec(name=name, documents=file, queries=file, qrels=file)
        case JsonlSpec() | ParquetSpec():
            return collection


def _resources(need: Need) -> dict[str, Any]:
    """A job's resources as `runtime.placement` reads them, without defaults."""
    labels = dict(need.labels)
    if need.gpu_type:
        labels["ray.io/accelerator-type"] = need.gpu_type
    optional = {
        "memory_bytes": float(need.memory or 0),
        "ranks": need.ranks if need.ranks > 1 else 0,
        "spread": need.spread,
        "labels": labels,
    }
    given = {key: value for key, value in optional.items() if value}
    return {"cpus": need.cpus, "gpus": need.gpus, **given}

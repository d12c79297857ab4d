"""The jobs of a plan, each once: equal work has an equal identity and becomes one node."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from xsweep.db.jobs import NewJob
from xsweep.evaluator.data.collection import folder_files
from xsweep.evaluator.specs import (
    ApidocsSpec,
    CandidatesSpec,
    CollectionSpec,
    DenseSpec,
    FileSpec,
    FilesSpec,
    FirstStageSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
    ModelSpec,
    SpladeSpec,
    TokensSpec,
)
from xsweep.orchestrator.forecast.cost_model import Planned, planned_s
from xsweep.orchestrator.grid.schema import Kind, Need
from xsweep.orchestrator.plan.identity import ChecksumCache, canonical, identity_of, significant

MAX_TOKENS = 512
"""Tokens that a store keeps of a document: more than most lengths, so that lengths share it."""


NO_PARENTS: Mapping[str, str] = {}


class _Known(NamedTuple):
    """What is worked out of a spec once."""

    spec: BaseModel
    """Kept, so that its id stays its own."""
    significant: str
    """Canonical JSON of what decides the result."""
    dumped: dict[str, Any]


class JobGraph:
    """Collects jobs, parents before children."""

    def __init__(
        self, needs: Mapping[Kind, Need], pins: ChecksumCache, *, rehearsal: bool = False
    ) -> None:
        self.needs, self.pins, self.rehearsal = needs, pins, rehearsal
        self.jobs: dict[str, NewJob] = {}
        self._specs: dict[int, _Known] = {}
        self._tokens: dict[tuple[int, int, int], tuple[object, object, str]] = {}

    def add(
        self,
        kind: Kind,
        name: str,
        spec: BaseModel,
        *,
        parents: Mapping[str, str] = NO_PARENTS,
        savings: Mapping[str, str] = NO_PARENTS,
        same_as: BaseModel | None = None,
        labels: Mapping[str, Any] | None = None,
        needs: Kind | None = None,
    ) -> str:
        """Add a job unless it is there already, and give its identity.

        `parents` (role to identity) change the result, `savings` are parents that only save work.
        `needs` names the kind whose resources it reserves, where that is not its own.
        `same_as` stands for the spec in the identity where specs differ in what does not matter.
        """
        known = self._know(spec, same_as)
        key = identity_of(kind, known.significant, parents)
        if self.rehearsal:
            labels = {**(labels or {}), "rehearsal": True}
        if key not in self.jobs:
            self.jobs[key] = NewJob(
                identity=key,
                kind=kind,
                name=name,
                spec=known.dumped,
                parents={**parents, **savings},
                resources=_resources(self.needs.get(needs or kind, Need())),
                labels=dict(labels or {}),
                cost=self._planned_s(kind, known.dumped, parents),
            )
        return key

    def _planned_s(self, kind: Kind, spec: dict[str, Any], parents: Mapping[str, str]) -> float:
        jobs = {role: self.jobs[identity] for role, identity in parents.items()}
        return planned_s(
            kind, spec, {role: Planned(job.kind, job.spec) for role, job in jobs.items()}
        )

    def _know(self, spec: BaseModel, same_as: BaseModel | None) -> "_Known":
        """What jobs need of a spec, worked out once: a grid's evaluations share a few of them."""
        known = self._specs.get(id(spec))
        if known is None:
            used, decides = spec, same_as or spec
            if self.rehearsal:
                used = used.model_copy(update={"rehearsal": True})
                decides = decides.model_copy(update={"rehearsal": True})
            text = canonical(significant(decides))
            known = self._specs[id(spec)] = _Known(spec, text, used.model_dump(mode="json"))
        return known

    def candidates(self, collection: CollectionSpec, stage: FirstStageSpec, depth: int) -> str:
        """The job that gives a collection's first `depth` candidates of every query."""
        spec = CandidatesSpec(collection=collection, first_stage=stage, depth=depth)
        name = f"prepare candidates {stage.type}-{depth} [{collection.name}]"
        if isinstance(stage, DenseSpec | SpladeSpec):
            # A model that reads every document: work like a teacher's, and it wants the same GPU.
            return self.add("prepare", name, spec, needs="teach")
        return self.add("prepare", name, spec)

    def tokens(self, collection: CollectionSpec, tokenizer: ModelSpec, used_tokens: int) -> str:
        """The job that tokenises a collection's documents, of which `used_tokens` are used."""
        max_tokens = max(MAX_TOKENS, used_tokens)
        # By object, which is kept: every cell asks for the same few again.
        asked = id(collection), id(tokenizer), max_tokens
        if asked not in self._tokens:
            job = self._add_tokens(collection, tokenizer, max_tokens)
            self._tokens[asked] = collection, tokenizer, job
        return self._tokens[asked][2]

    def _add_tokens(self, collection: CollectionSpec, tokenizer: ModelSpec, max_tokens: int) -> str:
        spec = TokensSpec(documents=collection, tokenizer=tokenizer, max_tokens=max_tokens)
        documents = self.pins.pin(documents_of(collection))
        name = f"prepare tokens {model_name(tokenizer)} [{documents.name}]"
        same_as = spec.model_copy(update={"documents": documents})
        return self.add("prepare", name, spec, same_as=same_as)


def documents_of(collection: CollectionSpec) -> CollectionSpec:
    """One spec for all collections that share their documents; it says nothing of the rest."""
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
            # The same file under every split.
            files = folder_files(Path(collection.path), collection.split)
            file = FileSpec(path=str(files.documents))
            name = Path(collection.path).name
            return FilesSpec(name=name, documents=file, queries=file, qrels=file)
        case JsonlSpec():
            return collection


def model_name(model: ModelSpec) -> str:
    """The last part of a model's own name."""
    return (model.id or model.package or model.folder or "").rstrip("/").rpartition("/")[2]


def _resources(need: Need) -> dict[str, Any]:
    """What the controller reserves, see `runtime.placement`; defaults are left out."""
    labels = dict(need.labels)
    if need.gpu_type:
        labels["ray.io/accelerator-type"] = need.gpu_type
    others = {
        "memory_bytes": float(need.memory or 0),
        "ranks": need.ranks if need.ranks > 1 else 0,
        "spread": need.spread,
        "labels": labels,
    }
    return {
        "cpus": need.cpus,
        "gpus": need.gpus,
        **{key: value for key, value in others.items() if value},
    }

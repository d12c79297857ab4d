"""The named entries of a grid file: collections, backbones, teachers and objectives."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from evaluator.specs import Bm25Spec, DenseSpec, FileSpec, ModelSpec, Spec, SpladeSpec
from trainer.objectives import Signal
from trainer.teachers.formats import FILE_KEYS


def listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _file(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _first_stage(value: Any) -> Any:
    return {value: {} if value == "bm25" else True} if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
File = Annotated[FileSpec, BeforeValidator(_file)]
"""A path, or `{path: …, md5: …}`; relative paths start at the grid file's folder."""


def one_of(block: BaseModel, *names: str) -> None:
    """Raises ValueError unless exactly one of these keys is given."""
    given = [name for name in names if getattr(block, name)]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(names)}; found {' and '.join(given) or 'none'}"
        )


class FirstStage(Spec):
    """What is re-ranked: `bm25`, `{bm25: {k1: 0.9}}`, `{run: …}`, `{runs: …}` or `scoreddocs`."""

    bm25: Bm25Spec | None = None
    run: File | None = None
    """A TREC run."""
    runs: str | None = None
    """A folder with a run per collection: `<collection, "/" as "-">.run.gz` (or `.run`).

    A run that is not there yet can be planned with, not submitted."""
    order: Literal["score", "rank"] = "score"
    """Which column of a run orders it: trec_eval's rule or the rank."""
    label: str | None = None
    """What reports call it: `BM25`, or `first stage` where a run has no label."""
    scoreddocs: bool = False
    """The candidates that ir_datasets ships."""
    dense: DenseSpec | None = None
    """A bi-encoder: `{model: {folder: …}}`."""
    splade: SpladeSpec | None = None
    """A learned sparse model: `{model: {folder: …}}`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "bm25", "run", "runs", "scoreddocs", "dense", "splade")
        return self


FirstStageEntry = Annotated[FirstStage, BeforeValidator(_first_stage)]


class Collection(Spec):
    """Documents, queries and qrels of the user's, or a data set of ir_datasets, under a name."""

    documents: File | None = None
    queries: File | None = None
    qrels: File | None = None
    folder: str | None = None
    """In BEIR's or TREC's layout."""
    split: str = "test"
    irds: str | None = None
    first_stage: FirstStageEntry | None = None
    """What is re-ranked here, in place of `evaluation.first_stage`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "documents", "folder", "irds")
        if self.documents and not (self.queries and self.qrels):
            raise ValueError("documents, queries and qrels belong together")
        return self


class Backbone(ModelSpec):
    """A model to fine-tune: `id`, `package` or `folder`, and what reports call it."""

    label: str | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        """The label, or the last part of the model's own name."""
        source = self.id or self.package or self.folder or ""
        return self.label or source.rstrip("/").rpartition("/")[2]

    @property
    def spec(self) -> ModelSpec:
        """The model without its label and group."""
        return ModelSpec(**self.model_dump(include=set(ModelSpec.model_fields)))


_KEYS: dict[str, Any] = {
    key: (str | None, Field(None, description=about)) for key, about in FILE_KEYS.items()
}
_FileKeys: Any = create_model("_FileKeys", __base__=Spec, signal=(Signal, ...), **_KEYS)
"""A signal, and a key for every file format that it may come in."""


class Teacher(_FileKeys):
    """Where a training signal comes from: a file, the first stage, or a model that scores it."""

    signal: Signal
    run: str | None = None
    """A TREC run, or `bm25`: the training collection's BM25 candidates."""
    jsonl: str | None = None
    """Lines of a query with its passages: texts, labels and scores, see `evaluator.jsonl`."""
    source: str | None = Field(None, pattern="^irds:")
    """`irds:<id>`: the docpairs of an ir_datasets data set."""
    model: Annotated[tuple[ModelSpec, ...], BeforeValidator(listed)] = ()
    """A model, or several whose mean counts, that scores the candidates in a teach job."""
    type: Literal["bi_encoder", "cross_encoder"] = "bi_encoder"
    """Of the model."""
    over: str = "bm25"
    """Whose candidates the model scores: `bm25`, or a teacher that has a run."""
    md5: str | None = None
    sha256: str | None = None
    order: Literal["score", "rank"] = "score"
    negatives: int | None = None
    list_size: int | None = None
    depth: int | None = Field(None, ge=2)
    """Of the list that samples come from; 100 for BM25 where nothing is said."""
    add_positives: bool = False
    relevant_grade: int = 1
    collection: str | None = None
    """Where its queries and documents are; None: `training.collection`."""
    label: str | None = None
    """What reports call its model; None: the model's own name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, *FILE_KEYS, "source", "model")
        given = self.model_fields_set
        if not self.model and given & {"over", "type"}:
            raise ValueError("over and type belong to a teacher with a model")
        if self.jsonl and self.collection:
            raise ValueError("a jsonl file carries its own texts: leave out collection")
        if (self.md5 or self.sha256) and (self.run == "bm25" or self.model or self.source):
            raise ValueError("md5 and sha256 belong to a teacher that is a file")
        return self


def _weight(value: Any) -> Any:
    return value if isinstance(value, dict) else {"weight": value}


class Term(Spec):
    """A loss that is added: its weight, or `{weight: …, parameters: {…}}`."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    parameters: dict[str, float] = Field(default={})


class Stage(Spec):
    """One training of several in a row; every other key is a training setting of this stage."""

    model_config = ConfigDict(extra="allow")

    objective: str
    """An entry of `objectives`, whose settings it takes over, or a loss."""
    teachers: Annotated[Names, Field(min_length=1)]
    """One; in the last stage also several, for as many cells."""
    parameters: dict[str, float] = Field(default={})

    @property
    def training(self) -> dict[str, Any]:
        """The training settings of this stage."""
        return self.model_extra or {}


class Objective(Spec):
    """A loss with its teachers; every other key is a training setting for this objective."""

    model_config = ConfigDict(extra="allow")

    teachers: Annotated[Names, Field(min_length=1)] | None = None
    """None: all teachers."""
    loss: str | None = None
    """None: the entry's own name."""
    parameters: dict[str, float] = Field(default={})
    plus: dict[str, Annotated[Term, BeforeValidator(_weight)]] = Field(default={})
    """Further losses on the same samples, with their weights."""
    stages: tuple[Stage, ...] = Field(default=())
    """Trainings one after the other, in place of all other keys."""

    @property
    def training(self) -> dict[str, Any]:
        """The training settings that this objective overrides."""
        return self.model_extra or {}

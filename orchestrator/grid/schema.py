"""The models of a grid file: every key, its type, its default and its meaning."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from xsweep.evaluator.measure_names import parse_measure
from xsweep.evaluator.specs import (
    BATCH_TOKENS,
    Bm25Spec,
    ColumnsSpec,
    DenseSpec,
    FileSpec,
    IdenticalIds,
    Layout,
    ListwiseSpec,
    ModelSpec,
    Precision,
    PromptSpec,
    Spec,
    SpladeSpec,
)
from xsweep.orchestrator.settings import Kind
from xsweep.trainer.objectives import Signal
from xsweep.trainer.specs import AshaSpec, OptimisationSpec, SamplingSpec
from xsweep.trainer.teachers.formats import FILE_KEYS


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_file(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_first_stage(value: Any) -> Any:
    return {value: {} if value == "bm25" else True} if isinstance(value, str) else value


def _as_collection(value: Any) -> Any:
    """A data set of ir_datasets, `irds:beir/scifact/test`, or a folder."""
    if not isinstance(value, str):
        return value
    return {"irds": value[5:]} if value.startswith("irds:") else {"folder": value}


Listed = BeforeValidator(_as_list)
"""One value may be written without a list."""

Names = Annotated[tuple[str, ...], Listed]

Measure = Annotated[str, AfterValidator(lambda name: str(parse_measure(name)))]

Seed = Annotated[int, Field(ge=0, lt=2**63)]

File = Annotated[FileSpec, BeforeValidator(_as_file)]
"""A path, or `{path: …, md5: …}`; relative paths start at the grid file's folder."""


def one_of(block: BaseModel, *names: str) -> None:
    """Raise ValueError unless exactly one of these keys is given."""
    given = [name for name in names if getattr(block, name)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of {', '.join(names)}; found {found}")


class FirstStage(Spec):
    """Candidates to re-rank: `bm25`, `{bm25: {k1: 0.9}}`, `{run: …}`, `{runs: …}`, `scoreddocs`…"""

    bm25: Bm25Spec | None = None
    run: File | None = None
    """A TREC run."""
    runs: str | None = None
    """A folder with a run per collection: `<collection, "/" as "-">.run.gz` (or `.run`).

    Missing runs can be planned with, but not submitted."""
    order: Literal["score", "rank"] = "score"
    """The column that orders a run: the score, by trec_eval's rule, or the rank."""
    label: str | None = None
    """Its name in reports; by default `BM25`, or `first stage` for a run."""
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


FirstStageEntry = Annotated[FirstStage, BeforeValidator(_as_first_stage)]

FirstStages = Annotated[tuple[FirstStageEntry, ...], Field(min_length=1), Listed]
"""One, or several with different labels: each makes columns of its own."""


class Collection(Spec):
    """A named collection: own documents, queries and qrels, or a data set of ir_datasets."""

    documents: File | None = None
    queries: File | None = None
    qrels: File | None = None
    folder: str | None = None
    """A folder in BEIR's or TREC's layout."""
    split: str = "test"
    irds: str | None = None
    identical_ids: IdenticalIds | None = None
    """`drop` leaves a document with the query's own id out of its candidates; `keep` does not.

    By default `drop` for ArguAna, Quora and CQADupStack of BEIR, whose queries are documents."""
    first_stage: FirstStages | None = None
    """Candidates to re-rank, in place of `evaluation.first_stage`; one or several."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "documents", "folder", "irds")
        if self.documents and not (self.queries and self.qrels):
            raise ValueError("documents, queries and qrels belong together")
        return self


CollectionEntry = Annotated[Collection, BeforeValidator(_as_collection)]


def model_name(model: ModelSpec) -> str:
    """The last part of a model's own name."""
    return (model.id or model.package or model.folder or "").rstrip("/").rpartition("/")[2]


class Backbone(ModelSpec):
    """A model to fine-tune: `id`, `package` or `folder`, and its name in reports."""

    label: str | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        """The label, or the last part of the model's own name."""
        return self.label or model_name(self)

    @property
    def spec(self) -> ModelSpec:
        """The model without its label and group."""
        return ModelSpec(**self.model_dump(include=set(ModelSpec.model_fields)))


_KEYS: dict[str, Any] = {
    key: (str | None, Field(None, description=about)) for key, about in FILE_KEYS.items()
}

_FileKeys: Any = create_model("_FileKeys", __base__=Spec, signal=(Signal, ...), **_KEYS)
"""A signal, and a key for every file format that it may come in."""


class Teacher(SamplingSpec, _FileKeys):
    """Source of a training signal: a file, the first stage, or a model that scores candidates."""

    signal: Signal
    run: str | None = None
    """A TREC run, or `bm25`: the training collection's BM25 candidates."""
    source: str | None = Field(None, pattern="^irds:")
    """`irds:<id>`: the docpairs of an ir_datasets data set."""
    model: Annotated[tuple[ModelSpec, ...], Listed] = ()
    """A model that scores the candidates in a teach job, or several whose mean counts."""
    type: Literal["bi_encoder", "cross_encoder", "causal_reranker", "listwise_llm"] = "bi_encoder"
    """The type of the model."""
    prompt: PromptSpec | None = None
    """The prompt of a causal reranker: the name of a published one, or a template and answers."""
    listwise: ListwiseSpec | None = None
    """Windows, prompt and server of a listwise LLM, which gives a ranking."""
    columns: ColumnsSpec | None = None
    """Columns of the Parquet files, by their meaning."""
    lists: bool = True
    """Parquet: all rows of a query are its list; false: each row is a sample, as `mse` allows."""
    over: str = "bm25"
    """Candidates that the model scores: those of `bm25`, or of a teacher with a run."""
    mean_of: Names = ()
    """Teachers with a run, scores or a model: their mean ranks over the documents that all list."""
    md5: str | None = None
    sha256: str | None = None
    order: Literal["score", "rank"] = "score"
    depth: int | None = Field(None, ge=2)
    """Length of the list that samples come from; 100 for BM25 by default."""
    collection: str | None = None
    """Collection of its queries and documents; None: `training.collection`."""
    label: str | None = None
    """Its model's name in reports; None: the model's own name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, *FILE_KEYS, "source", "model", "mean_of")
        given = self.model_fields_set
        if len(self.mean_of) == 1:
            raise ValueError("mean_of names two teachers or more")
        if not self.model and given & {"over", "type", "prompt", "listwise"}:
            raise ValueError("over, type, prompt and listwise belong to a teacher with a model")
        if self.type == "listwise_llm" and self.signal != "ranking":
            raise ValueError("a listwise_llm gives a ranking: set signal to ranking")
        if bool(self.columns or "lists" in given) != bool(self.parquet):
            raise ValueError("parquet needs columns; columns and lists belong to it alone")
        if self.collection and (self.jsonl or (self.columns and self.columns.texts)):
            raise ValueError("the teacher's file carries its own texts: leave out collection")
        if (self.md5 or self.sha256) and (self.run == "bm25" or self.model or self.source):
            raise ValueError("md5 and sha256 belong to a teacher that is a file")
        return self


class Term(Spec):
    """An additional loss: its weight, or `{weight: …, parameters: {…}}`."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    parameters: dict[str, float] = Field(default={})


def _as_term(value: Any) -> Any:
    return value if isinstance(value, dict) else {"weight": value}


TermEntry = Annotated[Term, BeforeValidator(_as_term)]


class Stage(Spec):
    """One of several trainings in sequence; every other key is a training setting of it."""

    model_config = ConfigDict(extra="allow")

    objective: str
    """An entry of `objectives`, whose settings it inherits, or a loss."""
    teachers: Annotated[Names, Field(min_length=1)]
    """One; the last stage may list several, one per cell."""
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
    plus: dict[str, TermEntry] = Field(default={})
    """Additional losses on the same samples, with their weights."""
    stages: tuple[Stage, ...] = Field(default=())
    """Trainings in sequence, in place of all other keys."""

    @property
    def training(self) -> dict[str, Any]:
        """The training settings that this objective overrides."""
        return self.model_extra or {}


def _as_objective(value: Any) -> Any:
    return {} if value is None else value


ObjectiveEntry = Annotated[Objective, BeforeValidator(_as_objective)]


class Range(Spec):
    """Values of a setting: `{choice: [1e-5, 3e-5]}`, `{uniform: [0, 0.1]}` or `{loguniform: …}`."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    """Uniform between two bounds; integers for integer settings."""
    loguniform: tuple[float, float] | None = None
    """Uniform in the logarithm between two positive bounds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "choice", "uniform", "loguniform")
        if bounds := self.uniform or self.loguniform:
            if not bounds[0] < bounds[1]:
                raise ValueError(f"the first bound must be below the second: {list(bounds)}")
            if self.loguniform and bounds[0] <= 0:
                raise ValueError(f"a loguniform bound must be positive: {list(bounds)}")
        return self


class Match(Spec):
    """A rule that matches cells by name: each key is one value or a list."""

    backbone: Names = ()
    group: Names = ()
    objective: Names = ()
    teacher: Names = ()
    seed: Annotated[tuple[int, ...], Listed] = ()


class Override(Spec):
    """Training settings for the cells that match."""

    match: Match
    training: dict[str, Any] = Field(min_length=1)


class Search(Spec):
    """A search for training settings by trials of a cell; cells take the winner's settings."""

    match: Match
    """Cells to tune: one search per backbone, objective and teacher, with the first seed."""
    space: dict[str, Range] = Field(min_length=1)
    """Settings of `training` with the values to try."""
    samples: int | None = Field(None, ge=2)
    """Number of trials; None: every combination of choices."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the samples."""
    training: dict[str, Any] = Field(default={})
    """Training settings of the trials only, such as fewer steps."""
    asha: AshaSpec | None = None
    """Early stopping of trials; None: trials run to their end."""
    apply: Match | None = None
    """Cells that take the winner's settings; None: the matching cells, each its own winner's."""


class TrainingSettings(OptimisationSpec):
    """A cell's training settings, after all overrides."""

    query_tokens: int = Field(32, ge=1)
    document_tokens: int = Field(256, ge=1)

    @property
    def optimisation(self) -> OptimisationSpec:
        """The settings of the optimisation, without the lengths."""
        return OptimisationSpec(**self.model_dump(include=set(OptimisationSpec.model_fields)))


class Validation(Spec):
    """Selection of each run's checkpoint."""

    collection: str | None = None
    suite: str | None = None
    first_stage: FirstStageEntry | None = None
    """Candidates to re-rank; None: the first of `evaluation.first_stage`. Given here, sweeps with
    different evaluations share their trainings."""
    measure: Measure = "nDCG@10"
    every_steps: int = Field(ge=1)
    depth: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "collection", "suite")
        return self


class Evaluation(Spec):
    """Tests of every run, first stage and teacher model."""

    collections: Names = ()
    suites: Names = ()
    first_stage: FirstStages = (FirstStage(bm25=Bm25Spec()),)
    """Candidates to re-rank; a list compares several, each in columns of its own."""
    depth: int = Field(100, ge=1)
    measures: Annotated[tuple[Measure, ...], Listed] = ("nDCG@10",)
    precision: Precision = "fp32"
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)
    """Token slots of one forward pass, padding included; by default, 65,536 on a GPU."""
    layout: Layout = "auto"
    """Layout of a batch: padded pairs, or pairs end to end; scores are the same."""
    max_passages: int = Field(1, ge=1)
    """Scored windows of a long document; the best one counts."""
    passage_overlap_tokens: int = Field(0, ge=0)


class Need(Spec):
    """Resources that Ray reserves for one job, or for each of its ranks."""

    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    memory: ByteSize | None = None
    """Memory, such as `8 GB`."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share one training, on one node or several; the result is the same."""
    spread: bool = False
    """Place every rank on a node of its own."""
    gpu_type: str | None = None
    """Ray's name of a GPU type, such as `H100`; `A100|H100` takes either."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes (`ray start --labels`); `eu|us` takes either."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ranks > 1 and 0 < self.gpus < 1:
            raise ValueError("ranks cannot share a GPU: give `gpus` as a whole number")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g}: give a fraction of one GPU, or whole GPUs")
        return self


class Grid(Spec):
    """A grid file as it is written; `grid.resolve` resolves its names."""

    extends: str | None = None
    """A grid file of the same folder; this file inherits every top-level key that it lacks."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the sweep; submitting it again extends the sweep."""
    description: str = ""
    """A note for readers."""
    rehearsal: bool = False
    """Run every job with a tiny random model on small generated data, to test the whole pipeline;
    such results are marked in name, identity and reports, and never mix with real ones."""
    collections: dict[str, CollectionEntry] = Field(default={})
    """Own collections, by name."""
    ir_datasets_home: str | None = None
    """A folder laid out as IR_DATASETS_HOME; None: the default of ir_datasets."""
    backbones: tuple[Backbone, ...] = Field(min_length=1)
    teachers: dict[str, Teacher] = Field(min_length=1)
    objectives: dict[str, ObjectiveEntry] = Field(min_length=1)
    seeds: Annotated[tuple[Seed, ...], Listed] = Field(min_length=1)
    training: dict[str, Any]
    """`collection` and the settings of TrainingSettings."""
    overrides: tuple[Override, ...] = ()
    """Settings of matching cells; later ones, and those that match by more keys, win."""
    exclude: tuple[Match, ...] = ()
    """Cells to skip."""
    include: tuple[Match, ...] = ()
    """Exceptions from `exclude`."""
    search: Annotated[tuple[Search, ...], Listed] = ()
    """Searches for settings on validation data; if several apply to a cell, the last wins."""
    validation: Validation | None = None
    evaluation: Evaluation
    resources: dict[Kind, Need] = Field(default={})

    @model_validator(mode="after")
    def _only_trainings_have_ranks(self) -> Self:
        for kind, need in self.resources.items():
            if need.ranks > 1 and kind != "train":
                raise ValueError(f"resources.{kind}.ranks: only a training can have several")
        return self


SHORT_FORMS: dict[Any, str] = {
    _as_file: "string",
    _as_first_stage: "string",
    _as_collection: "string",
    _as_term: "number",
    _as_objective: "null",
}
"""The JSON type that each of these converters accepts in place of a block."""


class _JsonSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema with the short forms that converters accept."""

    def function_before_schema(self, schema: Any) -> dict[str, Any]:
        inner, function = super().function_before_schema(schema), schema["function"]["function"]
        if function is _as_list:
            return {"anyOf": [inner["items"], inner]}
        if kind := SHORT_FORMS.get(function):
            return {"anyOf": [{"type": kind}, inner]}
        return inner


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a grid file, by which editors complete and check it."""
    schema = Grid.model_json_schema(schema_generator=_JsonSchema)
    blocks = schema["$defs"]
    settings = TrainingSettings.model_json_schema(schema_generator=_JsonSchema)
    blocks |= settings.pop("$defs", {})
    settings = settings["properties"]
    for name in ("Objective", "Stage"):
        blocks[name]["properties"] |= settings
        blocks[name]["additionalProperties"] = False
    training = {"type": "object", "properties": settings, "additionalProperties": False}
    for name in ("Override", "Search"):
        blocks[name]["properties"]["training"] = training
    collection = {"collection": {"type": "string"}}
    schema["properties"]["training"] = {**training, "properties": {**settings, **collection}}
    for name in ("ModelSpec", "Backbone", "PromptSpec"):
        blocks[name] = {"anyOf": [{"type": "string"}, blocks[name]]}
    blocks["Need"]["properties"]["memory"] = {"type": ["string", "integer", "null"]}
    # a file that extends another inherits what it lacks
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["extends", "name"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

"""The grid file as it is written: the models that say which keys there are.

The named entries of a grid file: collections, backbones, teachers and objectives.

The space of a search: where the values of a setting come from, and samples drawn by Ray Tune.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from xsweep.evaluator.specs import (
    BATCH_TOKENS,
    Bm25Spec,
    DenseSpec,
    FileSpec,
    Layout,
    ModelSpec,
    Precision,
    Spec,
    SpladeSpec,
)
from xsweep.orchestrator.settings import Kind
from xsweep.trainer.objectives import Signal
from xsweep.trainer.specs import AshaSpec, OptimisationSpec
from xsweep.trainer.teachers.formats import FILE_KEYS


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


class Range(Spec):
    """Values of a setting: `{choice: [1e-5, 3e-5]}`, `{uniform: [0, 0.1]}` or `{loguniform: …}`."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    """Between two numbers, each equally likely; whole numbers where the setting has such."""
    loguniform: tuple[float, float] | None = None
    """Between two positive numbers, their logarithms equally likely."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("choice", "uniform", "loguniform") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform")
        if bounds := self.uniform or self.loguniform:
            if not bounds[0] < bounds[1]:
                raise ValueError(f"the first bound must be below the second: {list(bounds)}")
            if self.loguniform and bounds[0] <= 0:
                raise ValueError(f"a loguniform bound must be positive: {list(bounds)}")
        return self


Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _empty(value: Any) -> Any:
    return {} if value is None else value


class Match(Spec):
    """Cells of the grid by name; each key has one value or a list, and no key matches all."""

    backbone: Names = ()
    group: Names = ()
    objective: Names = ()
    teacher: Names = ()
    seed: Annotated[tuple[int, ...], BeforeValidator(listed)] = ()


class Override(Spec):
    """Training settings for the cells that match."""

    match: Match
    training: dict[str, Any] = Field(min_length=1)


class Search(Spec):
    """A search for settings: trials of one cell, whose winner's settings other cells take."""

    match: Match
    """Cells to tune: one search per backbone, objective and teacher, with the first seed."""
    space: dict[str, Range] = Field(min_length=1)
    """Settings of `training` and where their values come from."""
    samples: int | None = Field(None, ge=2)
    """Trials; None: every combination of choices."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the drawing of samples."""
    training: dict[str, Any] = Field(default={})
    """Training settings of the trials alone, such as fewer steps."""
    asha: AshaSpec | None = None
    """When trials end early; None: never."""
    apply: Match | None = None
    """Cells that take the winner's settings; None: those that match, each its own."""


class TrainingSettings(OptimisationSpec):
    """A cell's training settings, after all overrides."""

    query_tokens: int = Field(32, ge=1)
    document_tokens: int = Field(256, ge=1)

    @property
    def optimisation(self) -> OptimisationSpec:
        """The part that says how weights move."""
        return OptimisationSpec(**self.model_dump(include=set(OptimisationSpec.model_fields)))


class Validation(Spec):
    """What selects each run's checkpoint."""

    collection: str | None = None
    suite: str | None = None
    first_stage: FirstStageEntry | None = None
    """What is re-ranked; None: `evaluation.first_stage`. Named here, it lets sweeps with other
    evaluations share the trainings."""
    measure: str = "nDCG@10"
    every_steps: int = Field(ge=1)
    depth: int = Field(100, ge=1)
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_of(self, "collection", "suite")
        return self


class Evaluation(Spec):
    """What every run, first stage and teacher model is tested on."""

    collections: Names = ()
    suites: Names = ()
    first_stage: FirstStageEntry = FirstStage(bm25=Bm25Spec())
    depth: int = Field(100, ge=1)
    measures: Names = ("nDCG@10",)
    precision: Precision = "fp32"
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)
    """Token slots of one forward pass, padding included; left at this, a GPU takes 65,536."""
    layout: Layout = "auto"
    """Whether pairs are padded or lie end to end; the scores are the same."""
    max_passages: int = Field(1, ge=1)
    """Windows of a long document that are scored; the best one counts."""
    passage_overlap_tokens: int = Field(0, ge=0)

    @property
    def passages(self) -> dict[str, int]:
        """How long documents are read, as an evaluation's spec has it."""
        names = ("max_passages", "passage_overlap_tokens")
        return {name: getattr(self, name) for name in names}


class Need(Spec):
    """What Ray reserves for one job, or for each rank of it."""

    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    memory: ByteSize | None = None
    """Such as `8 GB`."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share one training, on one node or several; the result is the same."""
    spread: bool = False
    """Whether every rank needs a node of its own."""
    gpu_type: str | None = None
    """As Ray names it, such as `H100`; `A100|H100` takes either."""
    labels: dict[str, str] = Field(default={})
    """Of the nodes (`ray start --labels`); `eu|us` takes either."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ranks > 1 and 0 < self.gpus < 1:
            raise ValueError("ranks share no card: give `gpus` as a whole number")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g}: give a fraction of one card, or whole cards")
        return self


class Grid(Spec):
    """A grid file as it is written; `grid.resolve` gives its names their meaning."""

    extends: str | None = None
    """A grid file of the same folder: its keys hold where this file does not give them, whole."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The sweep's; submitting the same name again extends it."""
    description: str = ""
    """For people."""
    rehearsal: bool = False
    """Run every job with a tiny random model on small generated data, to see that all parts work;
    such results carry the word in name, identity and reports, and never mix with real ones."""
    collections: dict[str, Collection] = Field(default={})
    """Of the user's own, by name."""
    ir_datasets_home: str | None = None
    """A folder laid out as IR_DATASETS_HOME; None: ir_datasets' own."""
    backbones: tuple[Backbone, ...] = Field(min_length=1)
    teachers: dict[str, Teacher] = Field(min_length=1)
    objectives: dict[str, Annotated[Objective, BeforeValidator(_empty)]] = Field(min_length=1)
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed)] = Field(min_length=1)
    training: dict[str, Any]
    """`collection` and the settings of TrainingSettings."""
    overrides: tuple[Override, ...] = ()
    """Later ones, and those that match by more keys, win."""
    exclude: tuple[Match, ...] = ()
    """Cells that are left out."""
    include: tuple[Match, ...] = ()
    """Cells that are kept all the same."""
    search: Annotated[tuple[Search, ...], BeforeValidator(listed)] = ()
    """Searches for settings on validation data; where several apply to a cell, the last wins."""
    validation: Validation | None = None
    evaluation: Evaluation
    resources: dict[Kind, Need] = Field(default={})

    @model_validator(mode="after")
    def _only_trainings_have_ranks(self) -> Self:
        for kind, need in self.resources.items():
            if need.ranks > 1 and kind != "train":
                raise ValueError(f"resources.{kind}.ranks: only a training can have several")
        return self

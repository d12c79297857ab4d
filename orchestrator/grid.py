"""The grid file as it is written: the models that say which keys there are."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from evaluator.specs import BATCH_TOKENS, Bm25Spec, Layout, Precision, Spec
from orchestrator.entries import (
    Backbone,
    Collection,
    FirstStage,
    FirstStageEntry,
    Names,
    Objective,
    Teacher,
    listed,
    one_of,
)
from orchestrator.settings import Kind
from orchestrator.space import Range
from trainer.specs import AshaSpec, OptimisationSpec

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
    """A grid file as it is written; `orchestrator.references` gives its names their meaning."""

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

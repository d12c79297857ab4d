"""The specification of one training; frozen, validated, cheap to import (no torch)."""

from typing import TYPE_CHECKING, Annotated, Literal, Self, Union

from pydantic import Field, ValidationInfo, field_validator, model_validator

from xsweep.evaluator.specs import CollectionSpec, Layout, ModelSpec, Spec, parse_measure
from xsweep.trainer.objectives import OBJECTIVES, Package, Signal
from xsweep.trainer.teachers.formats import FORMATS, Source

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[
        Union[tuple(form.source for form in FORMATS.values())],  # noqa: UP007 - of a tuple
        Field(discriminator="type"),
    ]


FORWARD_TOKENS = 2048
"""Token slots of one forward pass where nothing is said: right for a CPU."""


class LossSpec(Spec):
    """A loss, by its name in `objectives`, and its parameters where not the default."""

    name: str
    parameters: dict[str, float] = Field(default_factory=dict)
    package: Package | None = Field(
        default=None, validate_default=True, exclude_if=lambda package: package is None
    )
    """The installed package that the loss comes from, filled in where it is not given."""

    @field_validator("package")
    @classmethod
    def _as_installed(cls, package: Package | None, info: ValidationInfo) -> Package | None:
        found = OBJECTIVES.get(info.data.get("name", ""))
        installed = found and found.package
        if package and package != installed:
            raise ValueError(
                f"{info.data.get('name')} was planned with {package.title}, installed is "
                f"{installed.title if installed else 'none'}: install one version on all machines"
            )
        return installed

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in OBJECTIVES:
            names = ", ".join(OBJECTIVES)
            raise ValueError(f"unknown objective {self.name!r}: choose from {names}")
        known = OBJECTIVES[self.name].parameters
        for key, value in self.parameters.items():
            if key not in known:
                names = ", ".join(known) or "none"
                raise ValueError(f"{self.name} has no parameter {key!r}: it has {names}")
            if not 0 < value < float("inf"):
                raise ValueError(f"{self.name}: {key} is {value}, it must be positive and finite")
        return self


class TermSpec(LossSpec):
    """A loss that is added to another one."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of its mean, where the first loss has weight 1."""


class ObjectiveSpec(LossSpec):
    """What is minimised: the mean of one loss, plus weighted means of others."""

    plus: tuple[TermSpec, ...] = ()
    """Further losses on the same samples. A loss that learns from nothing but labels takes those
    of the qrels; the others take the teacher's signal."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The teacher's signals that feed all losses; empty where they exclude each other."""
        names = (self.name, *(term.name for term in self.plus))
        losses = [OBJECTIVES[name] for name in names]
        taught = [loss.signals for loss in losses if not loss.labels_only]
        return frozenset.intersection(*taught) if taught else losses[0].signals


class TeacherSpec(Spec):
    """Where the training signal comes from and how one sample is drawn from a query's list."""

    signal: Signal
    source: AnySource
    negatives: int | None = Field(default=None, ge=1)
    """Negatives beside one positive (column 0), uniform without replacement from the list."""
    list_size: int | None = Field(default=None, ge=2)
    """Documents drawn from a teacher's list; None takes the whole list."""
    depth: int | None = Field(default=None, ge=2)
    """Only the first so many documents of a query's list are used; None uses all."""
    add_positives: bool = False
    """Also use relevant documents that the list misses; else a query without any is skipped."""
    relevant_grade: int = Field(default=1, ge=1)
    """Smallest grade in the qrels that counts as relevant."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.source.type
        form = FORMATS[kind]
        if self.signal not in form.signals:
            given = " or ".join(sorted(form.signals))
            raise ValueError(f"a {kind!r} source gives {given}, not {self.signal}")
        if self.negatives and self.list_size:
            raise ValueError("give negatives (positive first) or list_size (any), not both")
        if form.pairs:
            if self.negatives not in (None, 1) or self.list_size or self.depth:
                raise ValueError(f"a {kind!r} source holds finished pairs: leave out the sampling")
        elif self.signal == "labels" and self.negatives is None:
            raise ValueError("labels need negatives: how many beside each positive")
        elif self.signal == "ranking" and self.negatives is not None:
            raise ValueError("a ranking is drawn as a list: use list_size in place of negatives")
        return self


class OptimisationSpec(Spec):
    """How the weights move. Everything here changes the result and is part of the identity."""

    steps: int = Field(ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    lr: float = Field(gt=0, lt=1)
    """Peak learning rate, reached after the warm-up."""
    batch_queries: int = Field(ge=1)
    """Samples (queries with their documents) in every global batch."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: weights, optimiser state and losses stay fp32."""
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: Literal[0, 1, 2] = 0
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one backward pass, without padding: whole queries, at least one."""
    forward_tokens: int = Field(default=FORWARD_TOKENS, ge=1)
    """Token slots, with padding, of one forward pass inside it: pairs of like length. Left at this,
    a GPU takes the whole micro-batch in one pass."""
    layout: Layout = "auto"
    """Pairs end to end or padded; auto: without padding on a CPU where the family can."""
    dropout: bool = True
    """Whether the backbone's own dropout is on; off is faster on a CPU."""
    gradient_checkpointing: bool = False
    """Computes activations twice to keep fewer; transformers offers it with dropout only."""
    checkpoint_every_steps: int = Field(default=1000, ge=1)
    """And after five minutes, whichever comes first."""

    @field_validator("betas")
    @classmethod
    def _proper(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: both must lie in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps"
            )
        if self.gradient_checkpointing and not self.dropout:
            raise ValueError("gradient_checkpointing works with dropout only: set one of them")
        return self


class ValidationSpec(Spec):
    """Re-ranks a collection's candidates while training; the best checkpoint is the result."""

    collection: CollectionSpec
    further: tuple[CollectionSpec, ...] = ()
    """More collections: the measure is the unweighted mean over all."""
    measure: str = "nDCG@10"
    every_steps: int = Field(ge=1)
    depth: int = Field(default=100, ge=1)
    """Candidates of each query that are re-ranked."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations without a better one; None never stops early."""

    @property
    def collections(self) -> tuple[CollectionSpec, ...]:
        """All collections; place n's inputs are the roles that `validation_roles` gives."""
        return (self.collection, *self.further)

    @property
    def title(self) -> str:
        """The collections' names, or how many there are."""
        if not self.further:
            return self.collection.name
        return f"{self.collection.name} and {len(self.further)} more, unweighted mean"

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, measure: str) -> str:
        return str(parse_measure(measure))


def validation_roles(place: int) -> tuple[str, str]:
    """The inputs of a validation's collection number `place`, from 0: candidates and tokens."""
    number = f"_{place + 1}" if place else ""
    return f"validation{number}", f"validation_tokens{number}"


class AshaSpec(Spec):
    """When trials are ended early: asynchronous successive halving (Li et al. 2020, 1810.05934).

    Rungs are at `grace_steps` times powers of `reduction`; a trial that comes to one and is not
    among the best 1/`reduction` of those that were there ends.
    """

    grace_steps: int = Field(ge=1)
    """No trial ends before so many steps."""
    reduction: float = Field(default=4, gt=1, allow_inf_nan=False)


class TrialSpec(Spec):
    """What makes a training a trial of a search: it may end early, and it may diverge."""

    asha: AshaSpec | None = None
    """None: every trial is trained to its last step."""


class SearchSpec(Spec):
    """Which settings a search chooses: those of the trial with the best validation."""

    settings: tuple[str, ...] = Field(min_length=1)
    """Of `optimisation`."""
    measure: str
    """Of the trials' validation."""
    rehearsal: bool = False
    """Whether this is part of a rehearsal, whose results are never mixed with real ones."""


class TrainSpec(Spec):
    """One training: what is trained, on what, how, and how its best checkpoint is chosen."""

    backbone: ModelSpec
    objective: ObjectiveSpec
    teacher: TeacherSpec
    collection: CollectionSpec
    optimisation: OptimisationSpec
    seed: int = Field(ge=0, lt=2**63)
    query_tokens: int = Field(default=32, ge=1)
    document_tokens: int = Field(default=256, ge=1)
    validation: ValidationSpec | None = None
    continues: bool = False
    """Start from the model that an earlier stage left in the input `start`, head and all; the
    backbone then says which one it was trained from."""
    rehearsal: bool = False
    """Whether this is part of a rehearsal, whose results are never mixed with real ones."""
    trial: TrialSpec | None = None
    """Of a search; its result is figures, and a model only where it was trained to its end."""
    searched: tuple[str, ...] = ()
    """Settings of `optimisation` that the input `search` gives, in place of those given here."""

    @model_validator(mode="after")
    def _teacher_feeds_objective(self) -> Self:
        usable = self.objective.signals
        if not usable:
            names = " and ".join(term.name for term in (self.objective, *self.objective.plus))
            raise ValueError(f"no teacher's signal feeds {names} together")
        if self.teacher.signal not in usable:
            raise ValueError(
                f"{self.objective.name} learns from {' or '.join(sorted(usable))}, "
                f"this teacher gives {self.teacher.signal}"
            )
        return self

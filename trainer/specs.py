"""The specification of one training: frozen, validated, cheap to import (no torch)."""

from typing import TYPE_CHECKING, Annotated, Literal, Self, Union

from pydantic import Field, ValidationInfo, field_validator, model_validator

from xsweep.evaluator.measure_names import parse_measure
from xsweep.evaluator.specs import CollectionSpec, JobSpec, Layout, ModelSpec, Spec
from xsweep.trainer.objectives import OBJECTIVES, Package, Signal
from xsweep.trainer.teachers.formats import FORMATS, Source

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[
        Union[tuple(FORMATS.values())],  # noqa: UP007 - of a tuple
        Field(discriminator="type"),
    ]


FORWARD_TOKENS = 2048
"""Default token slots of one forward pass, the best size for a CPU."""

RANKS = 8
"""Ranks that share each micro-batch evenly; so do 2 and 4. More share whole micro-batches."""


class LossSpec(Spec):
    """A loss by its name in `objectives`, and its parameters that are not the default."""

    name: str
    parameters: dict[str, float] = Field(default_factory=dict)
    package: Package | None = Field(
        default=None, validate_default=True, exclude_if=lambda package: package is None
    )
    """The installed package of the loss, set by validation."""

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
    """A loss that is added to another."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of its mean; the first loss has weight 1."""


class ObjectiveSpec(LossSpec):
    """The function to minimise: the mean of one loss, plus weighted means of others."""

    plus: tuple[TermSpec, ...] = ()
    """Further losses on the same samples. A loss that learns only from labels takes those of the
    qrels; the others take the teacher's signal."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The teacher's signals that feed all losses; empty if they exclude each other."""
        names = (self.name, *(term.name for term in self.plus))
        losses = [OBJECTIVES[name] for name in names]
        signals = [loss.signals for loss in losses if not loss.labels_only]
        return frozenset.intersection(*signals) if signals else losses[0].signals

    @property
    def pointwise(self) -> bool:
        """True if all losses learn from a document by itself."""
        return all(OBJECTIVES[term.name].pointwise for term in (self, *self.plus))


class SamplingSpec(Spec):
    """Sampling from a query's list of documents."""

    negatives: int | None = Field(default=None, ge=1)
    """Negatives for one positive (column 0), drawn uniformly without replacement."""
    list_size: int | None = Field(default=None, ge=2)
    """Documents drawn from a teacher's list; None uses the whole list."""
    depth: int | None = Field(default=None, ge=2)
    """Cut-off of a query's list; None uses the whole list."""
    add_positives: bool = False
    """Add relevant documents that the list misses; else a query without any is skipped."""
    relevant_grade: int = Field(default=1, ge=1)
    """Smallest grade in the qrels that counts as relevant."""
    top_relevant: int | None = Field(default=None, ge=1)
    """The n best documents of a list count as relevant; None: those of the qrels."""


class TeacherSpec(SamplingSpec):
    """The source of the training signal, and the sampling from it."""

    signal: Signal
    source: AnySource

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.source.type
        if self.signal not in self.source.signals:
            given = " or ".join(sorted(self.source.signals))
            raise ValueError(f"a {kind!r} source gives {given}, not {self.signal}")
        problem = self.source.lacks(self.signal)
        if problem and not (self.top_relevant and self.source.lacks("ranking") == ""):
            raise ValueError(problem)
        if self.negatives and self.list_size:
            raise ValueError("give negatives (positive first) or list_size (any), not both")
        if self.source.pairs:
            if self.negatives not in (None, 1) or self.list_size or self.depth:
                raise ValueError(f"a {kind!r} source holds finished pairs: remove the sampling")
        elif self.signal == "labels" and self.negatives is None:
            raise ValueError("labels need negatives: set their number for each positive")
        elif self.signal == "ranking" and self.negatives is not None:
            raise ValueError("a ranking is drawn as a list: use list_size instead of negatives")
        return self


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2022, arXiv 2106.09685), trained in place of the weights."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    """An adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers with an adapter, such as `q_proj`; none: all of them."""


class OptimisationSpec(Spec):
    """Optimiser, schedule, batch and precision; all of it is part of the identity."""

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
    """Largest norm of the full gradient; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: weights, optimiser state and losses stay fp32."""
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: Literal[0, 1, 2] = 0
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one backward pass, without padding: whole queries, at least one."""
    forward_tokens: int = Field(default=FORWARD_TOKENS, ge=1)
    """Token slots, with padding, of one forward pass inside it: pairs of similar length. At the
    default, a GPU takes the whole micro-batch in one pass."""
    layout: Layout = "auto"
    """Pairs packed or padded; auto: packed if the model family supports it."""
    dropout: bool = True
    """The backbone's own dropout; off is faster on a CPU."""
    gradient_checkpointing: bool = False
    """Recomputes activations to save memory; transformers supports it only with dropout."""
    lora: LoraSpec | None = Field(default=None, exclude_if=lambda lora: lora is None)
    """Trains low-rank adapters of a decoder in place of its weights; needs `xsweep[lora]`."""
    deterministic: bool = Field(default=False, exclude_if=lambda value: not value)
    """On a GPU: the same numbers to the bit whenever it runs on as many ranks, the same to rounding
    on any number, dropout included; slower. A CPU always gives that."""
    checkpoint_every_steps: int = Field(default=1000, ge=1)
    """A checkpoint is also written after five minutes, if that is earlier."""

    @field_validator("betas")
    @classmethod
    def _proper(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: both must be in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps"
            )
        if self.gradient_checkpointing and not self.dropout:
            raise ValueError("gradient_checkpointing needs dropout: turn it off, or dropout on")
        return self


class ValidationSpec(Spec):
    """Re-ranks a collection's candidates while training; the best checkpoint is the result."""

    collection: CollectionSpec
    further: tuple[CollectionSpec, ...] = ()
    """More collections: the measure is the unweighted mean over all."""
    measure: str = "nDCG@10"
    every_steps: int = Field(ge=1)
    depth: int = Field(default=100, ge=1)
    """Candidates of each query to re-rank."""
    patience: int | None = Field(default=None, ge=1)
    """Validations without improvement before the training stops; None never stops early."""

    @property
    def collections(self) -> tuple[CollectionSpec, ...]:
        """All collections; `validation_roles(n)` names the inputs of the n-th."""
        return (self.collection, *self.further)

    @property
    def title(self) -> str:
        """The name of the first collection and the number of others."""
        if not self.further:
            return self.collection.name
        return f"{self.collection.name} and {len(self.further)} more, unweighted mean"

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, measure: str) -> str:
        return str(parse_measure(measure))


def validation_roles(n: int) -> tuple[str, str]:
    """Input roles of a validation's n-th collection, from 0: candidates and tokens."""
    number = f"_{n + 1}" if n else ""
    return f"validation{number}", f"validation_tokens{number}"


class AshaSpec(Spec):
    """Asynchronous successive halving of trials (Li et al. 2020, https://arxiv.org/abs/1810.05934).

    Rungs are at `grace_steps` times powers of `reduction`; a trial that reaches a rung and is not
    among the best 1/`reduction` of the trials there ends.
    """

    grace_steps: int = Field(ge=1)
    """Steps before a trial can end."""
    reduction: float = Field(default=4, gt=1, allow_inf_nan=False)


class TrialSpec(Spec):
    """Makes a training a trial of a search, which may end early or diverge."""

    asha: AshaSpec | None = None
    """None trains every trial to its last step."""


class SearchSpec(JobSpec):
    """Settings that a search chooses: those of the trial with the best validation."""

    settings: tuple[str, ...] = Field(min_length=1)
    """Names of settings in `optimisation`."""
    measure: str
    """The measure of the trials' validation."""


class TrainSpec(JobSpec):
    """One training: model, loss, data, optimisation, and the choice of the best checkpoint."""

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
    """Start from the model of an earlier stage, the input `start`, with its head; `backbone` is
    then the model that it was trained from."""
    trial: TrialSpec | None = None
    """Set for a trial of a search; it gives a model only if it is trained to its last step."""
    searched: tuple[str, ...] = ()
    """Settings of `optimisation` that the input `search` replaces."""

    @model_validator(mode="after")
    def _teacher_feeds_objective(self) -> Self:
        usable = self.objective.signals
        if not usable:
            names = " and ".join(term.name for term in (self.objective, *self.objective.plus))
            raise ValueError(f"no signal of a teacher feeds {names} together")
        if self.teacher.source.single and (not self.objective.pointwise or self.objective.plus):
            raise ValueError("rows of one document each feed one loss that compares none")
        if self.teacher.signal not in usable:
            raise ValueError(
                f"{self.objective.name} learns from {' or '.join(sorted(usable))}, "
                f"this teacher gives {self.teacher.signal}"
            )
        return self

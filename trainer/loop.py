"""The training loop: steps, validations, checkpoints; leaving and coming back exactly.

How far a training is, as its checkpoints keep it.

What a step needs from the host, prepared while the device computes the step before.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from xsweep.errors import ConfigError, DivergenceError, SetupError, Stopped
from xsweep.trainer.batching import Assembler, draw_samples
from xsweep.trainer.checkpoint import Checkpoint, Weights, load_newest, save_checkpoint
from xsweep.trainer.distributed import total
from xsweep.trainer.engines import Engine, open_engine
from xsweep.trainer.forward import Scorer, attention
from xsweep.trainer.gradients import Budgets, Gradients, Prepared, fit_gradient
from xsweep.trainer.logging import MetricsLog, read_metrics
from xsweep.trainer.optimizer import learning_rate
from xsweep.trainer.specs import TrainSpec
from xsweep.trainer.teachers.teacher import Sample, Teacher


@dataclass
class Progress:
    """What has been done so far; `step` counts finished steps."""

    step: int = 0
    loss: float = math.nan
    pairs: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    """Of training steps alone."""
    validation_seconds: float = 0.0
    best_step: int = 0
    best_validation: float | None = None
    validations_since_best: int = 0
    ranks: list[list[int]] = field(default_factory=list)
    """[step, ranks]: how many processes computed it from that step on."""
    halved_budgets: list[list[int]] = field(default_factory=list)
    """[step, micro_batch_tokens]: where memory ran out and the budget was halved."""
    halted: bool = False
    """Whether it was ended before its last step, since others of its search are better."""

    @property
    def pairs_per_s(self) -> float:
        """Query-document pairs trained on in a second, by all ranks together."""
        return self.pairs / self.seconds if self.seconds else 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the computed token slots that were padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


Made = TypeVar("Made")


class Prefetcher(Generic[Made]):
    """Calls a function of the step for step n + 1, in a thread, once step n was asked for.

    The function is never called twice at once. What it raises is raised by `get`.
    """

    def __init__(self, make: Callable[[int], Made], steps: int) -> None:
        """`steps` is where to stop: no step from there on is prepared."""
        self.make, self.steps = make, steps
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.next: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        """What was made for a step, at once or as soon as it is ready."""
        prepared, self.next = self.next, None
        if prepared is None or prepared[0] != step:
            prepared = step, self.pool.submit(self.make, step)
        made = prepared[1].result()
        if step + 1 < self.steps:
            self.next = step + 1, self.pool.submit(self.make, step + 1)
        return made

    def close(self) -> None:
        """Waits for the call that runs and makes no further one."""
        self.pool.shutdown(cancel_futures=True)


log = logging.getLogger(__name__)


CHECKPOINT_S = 300.0
"""What a training loses at most when it is killed, however many steps lie between checkpoints."""


Report = Callable[..., object]


Validate = Callable[[PreTrainedModel], float]


def train_model(
    spec: TrainSpec,
    model: PreTrainedModel,
    teacher: Teacher,
    assembler: Assembler,
    out: Path,
    *,
    validate: Validate | None = None,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> Progress | None:
    """Trains to the last step, or until patience ends, and leaves the best weights in the model.

    `report(done, total, loss=, lr=, pairs_per_s=, left_s=)` is called after every step; where it
    raises Stopped, a checkpoint is written and Stopped goes on up; where it returns True, a trial
    of a search ends here (every rank reports, or none).
    The furthest sound checkpoint below the folders of `resume_from` is continued: the outcome is
    that of an undisturbed training.

    Raises DivergenceError with step and queries where the loss or the gradient is not finite;
    checkpoints before it stay. Ranks other than the first return None: they have nothing to write.
    """
    settings = spec.optimisation
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = load_newest(folder / "checkpoints" for folder in resume_from)
    scorer = Scorer(
        model.train(settings.dropout),
        bf16=settings.precision == "bf16",
        recompute=settings.gradient_checkpointing,
    )
    usual_attention = model.config._attn_implementation
    # Of padded passes. The CPU's fused attention has no dropout, and its backward pass in bf16 is
    # slow: a step of MiniLM-L6 on 64 pairs of 86 tokens takes a core 2.4 s with it, 1.7 s without.
    fastest = "eager" if model.device.type == "cpu" else usual_attention
    with attention(model, fastest), open_engine(scorer, settings) as engine:
        budgets = Budgets(settings.micro_batch_tokens, out, resume_from)
        training = _Training(
            spec, engine, scorer, teacher, assembler, budgets, out, usual_attention
        )
        if found:
            training.resume(found)
        agree(training.progress.step, model.device)
        kept = read_metrics(resume_from, training.progress.step)
        metrics = MetricsLog(out, settings.steps, kept) if engine.rank == 0 else None
        ahead = closing(training.ahead) if training.ahead else nullcontext()
        with ahead, metrics or nullcontext():
            while not training.finished:
                record = training.step()
                if validate and training.validation_is_due:
                    record["validation"] = training.validate(validate)
                if metrics:
                    metrics.add(record)
                due = training.progress.step % settings.checkpoint_every_steps == 0
                if due and training.progress.step < settings.steps:
                    training.save()
                if report:
                    training.hear(report, record)
        if training.best:
            training.set_weights(training.best)
        training.progress.halved_budgets = budgets.halved
    return training.progress if metrics else None


def works_ahead(device: torch.device) -> bool:
    """Whether the next step is prepared while this one is computed: a CPU would only share time."""
    return device.type == "cuda"


class _Training:
    """The state of one training between two steps."""

    def __init__(
        self,
        spec: TrainSpec,
        engine: Engine,
        scorer: Scorer,
        teacher: Teacher,
        assembler: Assembler,
        budgets: Budgets,
        out: Path,
        scoring_attention: str,
    ) -> None:
        self.spec, self.engine, self.model = spec, engine, scorer.model
        self.teacher, self.assembler, self.out = teacher, assembler, out
        self.scoring_attention = scoring_attention
        self.gradients = Gradients(spec, engine, scorer, assembler)
        self.budgets = budgets
        self.progress = Progress(ranks=[[0, engine.ranks]])
        self.best: Weights = {}
        steps = spec.optimisation.steps
        self.ahead = Prefetcher(self._prepare, steps) if works_ahead(scorer.model.device) else None
        self.saved_s = time.monotonic()

    @property
    def finished(self) -> bool:
        validation = self.spec.validation
        patience = validation.patience if validation else None
        return (
            self.progress.step >= self.spec.optimisation.steps
            or self.progress.halted
            or (patience is not None and self.progress.validations_since_best >= patience)
        )

    @property
    def validation_is_due(self) -> bool:
        assert self.spec.validation
        step = self.progress.step
        return step % self.spec.validation.every_steps == 0 or step == self.spec.optimisation.steps

    def step(self) -> dict[str, float]:
        """One global batch: forward, backward, update. The figures of the step."""
        started = time.perf_counter()
        settings, step = self.spec.optimisation, self.progress.step
        samples, prepared = self.ahead.get(step) if self.ahead else self._prepare(step)
        loss, tokens, slots = fit_gradient(self.gradients, self.budgets, samples, step, prepared)
        if not math.isfinite(loss):
            raise _diverged("loss", loss, step, samples)
        lr = learning_rate(settings, step)
        norm = self.engine.step(lr)
        if not math.isfinite(norm):
            raise _diverged("gradient norm", norm, step, samples)
        self.progress.step += 1
        self.progress.loss = loss
        self.progress.pairs += sum(len(sample.doc_ids) for sample in samples)
        self.progress.tokens += tokens
        self.progress.slots += slots
        self.progress.seconds += time.perf_counter() - started
        return {
            "step": self.progress.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "pairs_per_s": round(self.progress.pairs_per_s, 2),
            "padding_waste": round(self.progress.padding_waste, 4),
        }

    def _prepare(self, step: int) -> tuple[list[Sample], Prepared]:
        """The content of a step; may run in a thread of its own."""
        settings = self.spec.optimisation
        samples = draw_samples(self.teacher, self.spec.seed, step, settings.batch_queries)
        pin = self.model.device.type == "cuda"
        return samples, self.gradients.prepare(samples, self.budgets.at(step), pin=pin)

    def validate(self, measure: Validate) -> float:
        """Measures the model and keeps its weights if it is the best so far."""
        started = time.perf_counter()
        # One rank measures and all hear of it, since all must agree on when to stop.
        with attention(self.model, self.scoring_attention):
            own = measure(self.model) if self.engine.rank == 0 else 0.0
        value = self._sum(own)[0]
        progress = self.progress
        if progress.best_validation is None or value > progress.best_validation:
            progress.best_step, progress.best_validation = progress.step, value
            progress.validations_since_best = 0
            self.best = {name: tensor.cpu().clone() for name, tensor in self.weights().items()}
        else:
            progress.validations_since_best += 1
        progress.validation_seconds += time.perf_counter() - started
        return value

    def hear(self, report: Report, record: dict[str, float]) -> None:
        """Reports a step. Where a rank is asked to stop all save, and Stopped goes on up.

        Where a rank hears that its trial is to end, it ends for all, after this step. All save
        when the first rank's last checkpoint is `CHECKPOINT_S` old.
        """
        stopped = halt = None
        try:
            figures = {name: record[name] for name in ("loss", "lr", "pairs_per_s")}
            progress, steps = self.progress, self.spec.optimisation.steps
            spent_s = progress.seconds + progress.validation_seconds
            left_s = round(spent_s / progress.step * (steps - progress.step), 1)
            halt = report(progress.step, steps, **figures, left_s=left_s) is True
        except Stopped as error:
            stopped = error
        # All wishes in one exchange, which every step waits for.
        is_due = self.engine.rank == 0 and time.monotonic() - self.saved_s >= CHECKPOINT_S
        stops, halts, saves = self._sum(bool(stopped), bool(halt and self.spec.trial), is_due)
        if stops:
            self.save()
            raise stopped or Stopped("another rank of this training was asked to stop")
        progress.halted = halts > 0 and progress.step < steps
        if saves and not self.finished:
            self.save()

    def weights(self) -> Weights:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def set_weights(self, weights: Weights) -> None:
        for name, tensor in self.weights().items():
            tensor.copy_(weights[name])

    def save(self) -> None:
        """Writes a checkpoint; every rank takes part, the first one writes."""
        moments = self.engine.moments()
        if self.engine.rank == 0:
            progress = asdict(self.progress) | {"spec": _essentials(self.spec)}
            checkpoint = Checkpoint(self.weights(), moments, self.best, progress)
            save_checkpoint(self.out / "checkpoints", checkpoint)
        self.saved_s = time.monotonic()

    def _sum(self, *values: float) -> list[float]:
        """Each value's sum over the ranks."""
        return total(torch.tensor(values, dtype=torch.float64, device=self.model.device)).tolist()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint. Raises ConfigError where it is of another training."""
        progress = dict(checkpoint.progress)
        if progress.pop("spec") != _essentials(self.spec):
            raise ConfigError(
                "the checkpoints found are another training's: choose an empty output folder"
            )
        progress.pop("joules", None)  # in checkpoints of older versions
        self.progress, self.best = Progress(**progress), checkpoint.best
        ranks = self.progress.ranks or [[0, self.engine.ranks]]
        if ranks[-1][1] != self.engine.ranks:
            ranks.append([self.progress.step, self.engine.ranks])
        self.progress.ranks = ranks
        log.info("resuming after step %d of %d", self.progress.step, self.spec.optimisation.steps)
        self.engine.restore(checkpoint.weights, checkpoint.moments, self.progress.step)


def agree(step: int, device: torch.device) -> None:
    """Raises SetupError where the ranks would go on from different steps, all of them alike."""
    ours = torch.tensor([step, 1], dtype=torch.float64, device=device)
    steps, ranks = total(ours).tolist()
    if steps != step * ranks:
        raise SetupError(
            f"the ranks of this training found different checkpoints (this one step {step}): its "
            "folder must be the same on all nodes; look at the store there"
        )


def _essentials(spec: TrainSpec) -> dict[str, Any]:
    """What two attempts at one training share; locations, engine and layout may differ."""
    same = spec.model_dump(mode="json", include={"objective", "seed", "optimisation"})
    for name in ("engine", "zero_stage", "layout"):
        del same["optimisation"][name]
    return same


def _diverged(what: str, value: float, step: int, samples: list[Sample]) -> DivergenceError:
    queries = ", ".join(sample.query_id for sample in samples[:8])
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    return DivergenceError(
        f"the {what} of step {step} is {value}; its queries: {queries}{more}. "
        "Lower the learning rate, clip, or look at the teacher's scores of these queries"
    )

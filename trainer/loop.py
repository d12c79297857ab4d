"""The training loop: steps, validations, checkpoints, and an exact resume."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from xsweep.errors import ConfigError, DivergenceError, Stopped
from xsweep.evaluator.device import is_out_of_memory
from xsweep.trainer.batching import Assembler, draw_samples
from xsweep.trainer.checkpoint import Checkpoint, Weights, load_common, save_checkpoint
from xsweep.trainer.distributed import sum_over_ranks
from xsweep.trainer.engines import open_engine
from xsweep.trainer.forward import Scorer, attention, needs_ids
from xsweep.trainer.gradients import Budgets, Gradients, Prepared
from xsweep.trainer.optimizer import learning_rate, trained_parameters, write_weights
from xsweep.trainer.result import MetricsLog, read_metrics
from xsweep.trainer.specs import TrainSpec
from xsweep.trainer.teachers import Sample, Teacher

log = logging.getLogger(__name__)

CHECKPOINT_S = 300.0
"""Longest time between checkpoints: the most that a killed training loses."""

Report = Callable[..., object]
Validate = Callable[[PreTrainedModel], float]
Item = TypeVar("Item")


@dataclass
class Progress:
    """Totals of a training so far, as its checkpoints store them."""

    step: int = 0
    """Finished steps."""
    loss: float = math.nan
    pairs: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    """Time in training steps."""
    validation_seconds: float = 0.0
    best_step: int = 0
    best_validation: float | None = None
    validations_since_best: int = 0
    ranks: list[list[int]] = field(default_factory=list)
    """[step, ranks]: the number of ranks from that step on."""
    halved_budgets: list[list[int]] = field(default_factory=list)
    """[step, micro_batch_tokens]: the budget from that step on, halved as memory ran out."""
    halted: bool = False
    """True for a trial that its search ended early."""

    @property
    def pairs_per_s(self) -> float:
        """Query-document pairs per second of training steps, summed over ranks."""
        return self.pairs / self.seconds if self.seconds else 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the computed token slots that were padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


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
    """Trains to the last step, or until patience ends, and puts the best weights into the model.

    `report(done, total, loss=, lr=, pairs_per_s=, left_s=)` is called after every step. If it
    raises Stopped, a checkpoint is written before Stopped propagates; if it returns True, a trial
    of a search ends here (every rank reports, or none). The furthest intact checkpoint in
    `resume_from` is resumed; the result is that of an uninterrupted training.

    Raises DivergenceError with step and queries if the loss or the gradient is not finite;
    earlier checkpoints are kept. Returns None on every rank but the first, which writes.
    """
    settings = spec.optimisation
    if settings.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"{model.config.model_type} models have no gradient checkpointing: set "
                "gradient_checkpointing to false"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    by_ids = needs_ids(model.eval(), assembler.encoder, assembler.packed)
    scorer = Scorer(
        model.train(settings.dropout),
        bf16=settings.precision == "bf16",
        recompute=settings.gradient_checkpointing,
        by_ids=by_ids,
    )
    scoring_attention = model.config._attn_implementation
    # For padded passes. The CPU's fused attention has no dropout, and its backward pass in bf16 is
    # slow: a step of MiniLM-L6 on 64 pairs of 86 tokens takes a core 2.4 s with it, 1.7 s without.
    fastest = "eager" if model.device.type == "cpu" else scoring_attention
    with attention(model, fastest), open_engine(scorer, settings) as engine:
        budgets = Budgets(settings.micro_batch_tokens, out, resume_from)
        gradients = Gradients(spec, engine, scorer, assembler, budgets)
        training = _Training(spec, gradients, teacher, out, scoring_attention)
        checkpoints = [folder / "checkpoints" for folder in resume_from]
        if found := load_common(checkpoints, model.device):
            training.resume(found)
        start = training.progress.step
        kept = read_metrics(resume_from, start)
        metrics = MetricsLog(out, settings.steps, kept) if engine.rank == 0 else None
        with metrics or nullcontext():
            while not training.finished:
                try:
                    record = training.step()
                except Exception as error:
                    if is_out_of_memory(error):  # where no step can be repeated, as in the update
                        step = training.progress.step
                        budgets.halve(step, budgets.at(step), error)
                    raise
                if validate and training.validation_is_due:
                    record["validation"] = training.validate(validate)
                if metrics:
                    metrics.add(record)
                due = training.progress.step % settings.checkpoint_every_steps == 0
                if due and training.progress.step < settings.steps:
                    training.save()
                if report:
                    training.report(report, record)
        if training.best:
            write_weights(model, training.best)
        training.progress.halved_budgets = budgets.halved
    return training.progress if metrics else None


class _Training:
    """The state of one training between two steps."""

    def __init__(
        self,
        spec: TrainSpec,
        gradients: Gradients,
        teacher: Teacher,
        out: Path,
        scoring_attention: str,
    ) -> None:
        self.spec, self.gradients, self.teacher, self.out = spec, gradients, teacher, out
        self.engine, self.model = gradients.engine, gradients.scorer.model
        self.scoring_attention = scoring_attention
        self.progress = Progress(ranks=[[0, self.engine.ranks]])
        self.best: Weights = {}
        self.following: tuple[list[Sample], Prepared] | None = None
        """The next step's batch, once prepared."""
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
        """Runs one step, forward, backward and update, and returns its figures."""
        started = time.perf_counter()
        progress, step = self.progress, self.progress.step
        (samples, prepared), self.following = self.following or self.prepare(step), None
        loss, tokens, slots = self.gradients.add(samples, step, prepared, self.prepare_next)
        if not math.isfinite(loss):
            raise _diverged("loss", loss, step, samples)
        lr = learning_rate(self.spec.optimisation, step)
        norm = self.engine.step(lr)
        if not math.isfinite(norm):
            raise _diverged("gradient norm", norm, step, samples)
        progress.step += 1
        progress.loss = loss
        progress.pairs += sum(len(sample.doc_ids) for sample in samples)
        progress.tokens += tokens
        progress.slots += slots
        progress.seconds += time.perf_counter() - started
        return {
            "step": progress.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "pairs_per_s": round(progress.pairs_per_s, 2),
            "padding_waste": round(progress.padding_waste, 4),
        }

    def prepare(self, step: int) -> tuple[list[Sample], Prepared]:
        """Draws and assembles the batch of a step."""
        batch_queries = self.spec.optimisation.batch_queries
        samples = draw_samples(self.teacher, self.spec.seed, step, batch_queries)
        return samples, self.gradients.prepare(samples, step)

    def prepare_next(self) -> None:
        """Prepares the batch of the next step while a GPU computes this one's gradients.

        A thread would do so earlier, but hold Python's lock while kernels are to be launched.
        """
        step = self.progress.step + 1
        if not self.following and step < self.spec.optimisation.steps:
            self.following = self.prepare(step)

    def validate(self, measure: Validate) -> float:
        """Measures the model and keeps its weights if it is the best so far."""
        started = time.perf_counter()
        with attention(self.model, self.scoring_attention):
            own = measure(self.model)
        # All take the first rank's value, since all must stop at the same step.
        (value,) = self._sum(own if self.engine.rank == 0 else 0.0)
        progress = self.progress
        if progress.best_validation is None or value > progress.best_validation:
            progress.best_step, progress.best_validation = progress.step, value
            progress.validations_since_best = 0
            self.best = {name: tensor.cpu().clone() for name, tensor in self._weights().items()}
        else:
            progress.validations_since_best += 1
        progress.validation_seconds += time.perf_counter() - started
        return value

    def report(self, report: Report, record: dict[str, float]) -> None:
        """Reports a step, then saves, stops or halts on every rank as one of them demands.

        If a rank is asked to stop, all save and Stopped propagates. If a trial is to end, it ends
        on all ranks after this step. All save when the first rank's last checkpoint is
        `CHECKPOINT_S` old.
        """
        progress, steps = self.progress, self.spec.optimisation.steps
        figures = {name: record[name] for name in ("loss", "lr", "pairs_per_s")}
        spent_s = progress.seconds + progress.validation_seconds
        left_s = round(spent_s / progress.step * (steps - progress.step), 1)
        stopped = halt = None
        try:
            halt = report(progress.step, steps, **figures, left_s=left_s) is True
        except Stopped as error:
            stopped = error
        # All requests in one exchange, because every step waits for it.
        is_due = self.engine.rank == 0 and time.monotonic() - self.saved_s >= CHECKPOINT_S
        stops, halts, saves = self._sum(bool(stopped), bool(halt and self.spec.trial), is_due)
        if stops:
            self.save()
            raise stopped or Stopped("another rank of this training was asked to stop")
        progress.halted = halts > 0 and progress.step < steps
        if saves and not self.finished:
            self.save()

    def _sum(self, *values: float) -> list[float]:
        """Each value's sum over the ranks."""
        own = torch.tensor(values, dtype=torch.float64, device=self.model.device)
        return sum_over_ranks(own).tolist()

    def _weights(self) -> Weights:
        return {name: each.detach() for name, each in trained_parameters(self.model).items()}

    def save(self) -> None:
        """Writes a checkpoint; every rank takes part, the first one writes."""
        moments = self.engine.moments()
        if self.engine.rank == 0:
            progress = asdict(self.progress) | {"spec": _identity(self.spec)}
            checkpoint = Checkpoint(self._weights(), moments, self.best, progress)
            save_checkpoint(self.out / "checkpoints", checkpoint)
        self.saved_s = time.monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Resumes from a checkpoint. Raises ConfigError if it is of another training."""
        progress = dict(checkpoint.progress)
        if progress.pop("spec") != _identity(self.spec):
            raise ConfigError(
                "the checkpoints found are of another training: choose an empty output folder"
            )
        progress.pop("joules", None)  # in checkpoints of older versions
        self.progress, self.best = Progress(**progress), checkpoint.best
        ranks = self.progress.ranks = self.progress.ranks or [[0, self.engine.ranks]]
        if ranks[-1][1] != self.engine.ranks:
            ranks.append([self.progress.step, self.engine.ranks])
        log.info("resuming after step %d of %d", self.progress.step, self.spec.optimisation.steps)
        self.engine.restore(checkpoint.weights, checkpoint.moments, self.progress.step)


def _identity(spec: TrainSpec) -> dict[str, Any]:
    """Settings that two attempts at one training share; paths, engine and layout may differ."""
    same = spec.model_dump(mode="json", include={"objective", "seed", "optimisation"})
    for name in ("engine", "zero_stage", "layout", "deterministic"):
        same["optimisation"].pop(name, None)
    return same


def _diverged(figure: str, value: float, step: int, samples: list[Sample]) -> DivergenceError:
    queries = ", ".join(sample.query_id for sample in samples[:8])
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    return DivergenceError(
        f"the {figure} of step {step} is {value}; its queries: {queries}{more}. "
        "Lower the learning rate, clip, or check the teacher's scores of these queries"
    )

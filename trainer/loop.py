"""The training loop: steps, validations, checkpoints; leaving and coming back exactly."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trainer.batches import Assembler, draw_samples, dropout_seed, pad_targets
from trainer.checkpoints import Checkpoint, Weights, load_newest, save_checkpoint
from trainer.engines import Engine, open_engine
from trainer.metrics import MetricsLog, read_metrics
from trainer.objectives import OBJECTIVES
from trainer.ranks import deal
from trainer.schedule import learning_rate
from trainer.scorer import Scorer, attention
from trainer.specs import TrainSpec
from trainer.teachers import Sample, Teacher
from xsweep import ConfigError, DivergenceError, Stopped

log = logging.getLogger(__name__)

Report = Callable[..., object]
Validate = Callable[[PreTrainedModel], float]


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

    @property
    def pairs_per_s(self) -> float:
        """Query-document pairs trained on in a second, by this rank."""
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
    """Trains to the last step, or until patience ends, and leaves the best weights in the model.

    `report(done, total, loss=, lr=, pairs_per_s=)` is called after every step; where it raises
    Stopped, a checkpoint is written and Stopped goes on up (every rank reports, or none). The
    furthest sound checkpoint below the folders of `resume_from` is continued: the outcome is that
    of an undisturbed training.

    Raises DivergenceError with step and queries where the loss or the gradient is not finite;
    checkpoints before it stay. Ranks other than the first return None: they have nothing to write.
    """
    settings = spec.optimisation
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = load_newest(folder / "checkpoints" for folder in resume_from)
    scorer = Scorer(model.train(settings.dropout), bf16=settings.precision == "bf16")
    usual_attention = model.config._attn_implementation
    # The CPU's fused attention has no dropout, and its backward pass in bf16 is slow: a step of
    # MiniLM-L6 on 64 pairs of 86 tokens takes one core 2.4 s with it and 1.7 s without.
    fastest = "eager" if model.device.type == "cpu" else usual_attention
    with attention(model, fastest), open_engine(scorer, settings) as engine:
        training = _Training(spec, engine, model, teacher, assembler, out, usual_attention)
        if found:
            training.resume(found)
        kept = read_metrics(resume_from, training.progress.step)
        metrics = MetricsLog(out, settings.steps, kept) if engine.rank == 0 else None
        with metrics or nullcontext():
            while not training.finished:
                record = training.step()
                if validate and training.validation_is_due:
                    record["validation"] = training.validate(validate)
                if metrics:
                    metrics.add(record)
                saved = training.progress.step % settings.checkpoint_every_steps == 0
                if saved and training.progress.step < settings.steps:
                    training.save()
                if report:
                    training.hear(report, record)
        if training.best:
            training.set_weights(training.best)
    return training.progress if metrics else None


class _Training:
    """The state of one training between two steps."""

    def __init__(
        self,
        spec: TrainSpec,
        engine: Engine,
        model: PreTrainedModel,
        teacher: Teacher,
        assembler: Assembler,
        out: Path,
        scoring_attention: str,
    ) -> None:
        self.spec, self.engine, self.model = spec, engine, model
        self.teacher, self.assembler, self.out = teacher, assembler, out
        self.scoring_attention = scoring_attention
        function = OBJECTIVES[spec.objective.name].function
        self.objective = partial(function, **spec.objective.parameters)
        self.progress = Progress()
        self.best: Weights = {}

    @property
    def finished(self) -> bool:
        validation = self.spec.validation
        patience = validation.patience if validation else None
        return self.progress.step >= self.spec.optimisation.steps or (
            patience is not None and self.progress.validations_since_best >= patience
        )

    @property
    def validation_is_due(self) -> bool:
        assert self.spec.validation
        step = self.progress.step
        return step % self.spec.validation.every_steps == 0 or step == self.spec.optimisation.steps

    def step(self) -> dict[str, float]:
        """One global batch: forward, backward, update. The figures of the step."""
        started = time.perf_counter()
        settings, seed, step = self.spec.optimisation, self.spec.seed, self.progress.step
        samples = draw_samples(self.teacher, seed, step, settings.batch_queries)
        targets_QD, mask_QD = pad_targets(samples)
        _, count = self.objective(torch.zeros_like(targets_QD), targets_QD, mask_QD)
        loss = self._backward(samples, count.clamp(min=1))
        if not math.isfinite(loss):
            raise _diverged("loss", loss, step, samples)
        lr = learning_rate(settings, step)
        norm = self.engine.step(lr)
        if not math.isfinite(norm):
            raise _diverged("gradient norm", norm, step, samples)
        self.progress.step += 1
        self.progress.loss = loss
        self.progress.seconds += time.perf_counter() - started
        return {
            "step": self.progress.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "pairs_per_s": round(self.progress.pairs_per_s, 2),
            "padding_waste": round(self.progress.padding_waste, 4),
        }

    def _backward(self, samples: list[Sample], count: torch.Tensor) -> float:
        """Gradients of this rank's micro-batches; the loss of the whole global batch."""
        device = self.model.device
        pieces = self.assembler.cut(samples)
        hands = deal([self.assembler.tokens(piece) for piece in pieces], self.engine.ranks)
        loss = torch.zeros((), device=device)
        for turn in range(max(map(len, hands))):
            # ZeRO-2 exchanges gradients in every backward pass, so a rank with nothing left
            # computes some piece again, at no weight.
            hand = hands[self.engine.rank]
            number, weight = (hand[turn], 1.0) if turn < len(hand) else (0, 0.0)
            batch = self.assembler.assemble(pieces[number]).to(device)
            torch.manual_seed(dropout_seed(self.spec.seed, self.progress.step, number))
            scores_QD = batch.matrix(self.engine(batch.forwards))
            part, _ = self.objective(scores_QD, batch.targets_QD, batch.mask_QD)
            part = part * (weight / count.to(device))
            self.engine.backward(part)
            loss += part.detach()
            self.progress.pairs += len(batch.places_P) * int(weight)
            self.progress.tokens += batch.tokens
            self.progress.slots += batch.slots
        return self.engine.total(loss)

    def validate(self, measure: Validate) -> float:
        """Measures the model and keeps its weights if it is the best so far."""
        started = time.perf_counter()
        # One rank measures and all hear of it, since all must agree on when to stop.
        with attention(self.model, self.scoring_attention):
            own = measure(self.model) if self.engine.rank == 0 else 0.0
        value = self.engine.total(torch.tensor(own, dtype=torch.float64, device=self.model.device))
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
        """Reports a step. Where a rank is asked to stop all save, and Stopped goes on up."""
        stopped = None
        try:
            figures = {name: record[name] for name in ("loss", "lr", "pairs_per_s")}
            report(self.progress.step, self.spec.optimisation.steps, **figures)
        except Stopped as error:
            stopped = error
        if self.engine.total(torch.tensor(float(bool(stopped)), device=self.model.device)):
            self.save()
            raise stopped or Stopped("another rank of this training was asked to stop")

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

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint. Raises ConfigError where it is of another training."""
        progress = dict(checkpoint.progress)
        if progress.pop("spec") != _essentials(self.spec):
            raise ConfigError(
                "the checkpoints found are another training's: choose an empty output folder"
            )
        self.progress, self.best = Progress(**progress), checkpoint.best
        log.info("resuming after step %d of %d", self.progress.step, self.spec.optimisation.steps)
        self.engine.restore(checkpoint.weights, checkpoint.moments, self.progress.step)


def _essentials(spec: TrainSpec) -> dict[str, Any]:
    """What two attempts at one training share; locations may differ, and the engine too."""
    same = spec.model_dump(mode="json", include={"objective", "seed", "optimisation"})
    del same["optimisation"]["engine"], same["optimisation"]["zero_stage"]
    return same


def _diverged(what: str, value: float, step: int, samples: list[Sample]) -> DivergenceError:
    queries = ", ".join(sample.query_id for sample in samples[:8])
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    return DivergenceError(
        f"the {what} of step {step} is {value}; its queries: {queries}{more}. "
        "Lower the learning rate, clip, or look at the teacher's scores of these queries"
    )

"""The loss and gradient of a global batch: pieces dealt to the ranks, long lists in two passes.

A step's gradient, computed again in smaller pieces where a device lacks the memory.

The token budget of a backward pass, halved where the memory did not hold it.
"""

import json
import logging
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from xsweep.evaluator.device import is_out_of_memory, release_freed_memory
from xsweep.trainer.batching import (
    Assembler,
    MicroBatch,
    Targets,
    dropout_seed,
    group_passes,
    pad_targets,
)
from xsweep.trainer.distributed import deal, total
from xsweep.trainer.engines import Engine
from xsweep.trainer.forward import Scorer, slots
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import ObjectiveSpec, TrainSpec
from xsweep.trainer.teachers.teacher import Sample


class Term(NamedTuple):
    """One loss of an objective."""

    weight: float
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    of_labels: bool

    def parts(self, scores_QD: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum and count, see `xsweep.trainer.objectives`."""
        wanted_QD = targets.labels_QD if self.of_labels else targets.targets_QD
        return self.function(scores_QD, wanted_QD, targets.mask_QD)


def build_terms(spec: ObjectiveSpec) -> list[Term]:
    """The losses of an objective; the first has weight 1."""
    losses = [(1.0, spec), *((term.weight, term) for term in spec.plus)]
    return [
        Term(
            weight,
            partial(OBJECTIVES[loss.name].function, **loss.parameters),
            # With one loss there is one signal, whatever it is called.
            of_labels=bool(spec.plus) and OBJECTIVES[loss.name].labels_only,
        )
        for weight, loss in losses
    ]


def count_terms(terms: list[Term], targets: Targets) -> list[float]:
    """The divisor of each loss's sum over a global batch; at least 1."""
    scores_QD = torch.zeros_like(targets.targets_QD)
    return [max(1.0, term.parts(scores_QD, targets)[1].item()) for term in terms]


def weigh_terms(
    terms: list[Term], scores_QD: Tensor, targets: Targets, counts: list[float]
) -> Tensor:
    """These queries' part of the loss of the global batch that has those counts.

    Worked: sums 6 and 2 with weights 1 and 0.5 and counts 3 and 4 give 6/3 + 0.5 · 2/4 = 2.25.
    """
    losses = (
        term.parts(scores_QD, targets)[0] * (term.weight / count)
        for term, count in zip(terms, counts, strict=True)
    )
    return torch.stack(list(losses)).sum()


class Work(NamedTuple):
    """What computing one global batch came to."""

    loss: float
    """Of the whole global batch."""
    tokens: int
    """True tokens of the pairs that this rank computed."""
    slots: int
    """Token slots that it computed for them: tokens and padding."""


class Part(NamedTuple):
    """What one rank's part of a global batch came to, before the ranks hear of each other."""

    loss: torch.Tensor
    """Of this rank's micro-batches, on the device"""
    tokens: int
    slots: int


class Prepared(NamedTuple):
    """This rank's micro-batches of one step, on the host."""

    budget: int
    """The tokens of a backward pass that they were cut for"""
    numbers: list[int]
    """Of each micro-batch among all ranks'"""
    batches: list[MicroBatch]
    """In the order of `numbers`, and one more where passes are missing"""
    passes: list[int]
    """Backward passes that each takes"""
    missing_passes: int
    """That other ranks take more than this one"""


class Gradients:
    """Adds up the gradient of global batches in an engine, under a token budget."""

    def __init__(
        self, spec: TrainSpec, engine: Engine, scorer: Scorer, assembler: Assembler
    ) -> None:
        self.engine, self.scorer, self.assembler = engine, scorer, assembler
        self.terms = build_terms(spec.objective)
        self.seed = spec.seed
        self.device = scorer.model.device

    def prepare(self, samples: list[Sample], budget: int, *, pin: bool = False) -> Prepared:
        """What a step of these samples computes under a budget: no work of the device.

        A function of its arguments, which may be called in another thread. Pinned batches are
        copied to the device while it computes.
        """
        assembler = copy(self.assembler)
        assembler.limit(budget)
        pieces = assembler.cut(samples)
        passes = [assembler.backward_passes(piece) for piece in pieces]
        hands = deal([assembler.tokens(piece) for piece in pieces], self.engine.ranks)
        hand = hands[self.engine.rank]
        taken = [sum(passes[number] for number in hand) for hand in hands]
        missing = max(taken) - taken[self.engine.rank]
        idle = [assembler.assemble(pieces[0])] if missing else []
        batches = [*(assembler.assemble(pieces[number]) for number in hand), *idle]
        if pin:
            batches = [batch.pinned() for batch in batches]
        return Prepared(budget, hand, batches, [passes[number] for number in hand], missing)

    def add(self, samples: list[Sample], step: int) -> Work:
        """The gradient of a step's samples: this rank's pieces; with others' they are the whole."""
        prepared = self.prepare(samples, self.assembler.micro_batch_tokens)
        return self.whole(self.add_part(samples, step, prepared))

    def add_part(self, samples: list[Sample], step: int, prepared: Prepared) -> Part:
        """This rank's pieces of the gradient; others know nothing of it yet.

        Every micro-batch draws its dropout from (seed, step, micro-batch), whoever computes it.
        """
        counts = count_terms(self.terms, pad_targets(samples))
        loss = torch.zeros((), device=self.device)
        tokens = slots = 0
        for number, batch, passes in zip(
            prepared.numbers, prepared.batches, prepared.passes, strict=False
        ):
            batch = batch.to(self.device)
            random_state = dropout_seed(self.seed, step, number)
            if passes == 1:
                loss += self._in_one_pass(batch, counts, random_state)
            else:
                groups = self._groups(batch, prepared.budget)
                assert len(groups) == passes, "other ranks count on this many passes"
                loss += self._in_two_passes(batch, groups, counts, random_state)
            tokens += batch.tokens
            slots += batch.slots
        # ZeRO-2 exchanges gradients in every backward pass, so that a rank with nothing left
        # computes something at no weight while others go on.
        for _ in range(prepared.missing_passes):
            idle = prepared.batches[-1].to(self.device).forwards[:1]
            self.engine.backward(self.engine(idle).sum() * 0)
        return Part(loss, tokens, slots)

    def whole(self, part: Part) -> Work:
        """What all ranks' parts come to."""
        return Work(total(part.loss).item(), part.tokens, part.slots)

    def _in_one_pass(
        self, batch: MicroBatch, counts: list[float], random_state: int
    ) -> torch.Tensor:
        torch.manual_seed(random_state)
        scores_QD = batch.matrix(self.engine(batch.forwards))
        loss = weigh_terms(self.terms, scores_QD, batch.targets, counts)
        self.engine.backward(loss)
        return loss.detach()

    def _groups(self, batch: MicroBatch, budget: int) -> list[slice]:
        return group_passes(list(map(slots, batch.forwards)), budget)

    def _in_two_passes(
        self, batch: MicroBatch, groups: list[slice], counts: list[float], random_state: int
    ) -> torch.Tensor:
        """dL/ds from all scores first, then a backward pass for each group of forward passes.

        Gao et al. 2021, section 4 (https://arxiv.org/abs/2101.06983). Both passes walk through
        the forward passes in one order from one random state, so that dropout is the same.
        """
        torch.manual_seed(random_state)
        with torch.no_grad():
            logits_P = torch.cat([self.scorer(batch.forwards[group]) for group in groups])
        logits_P.requires_grad_()
        loss = weigh_terms(self.terms, batch.matrix(logits_P), batch.targets, counts)
        (slopes_P,) = torch.autograd.grad(loss, logits_P)
        torch.manual_seed(random_state)
        start = 0
        for group in groups:
            again_P = self.engine(batch.forwards[group])
            self.engine.backward((again_P * slopes_P[start : start + len(again_P)]).sum())
            start += len(again_P)
        return loss.detach()


log = logging.getLogger(__name__)


NAME = "budgets.json"


class Budgets:
    """The budget of every step; a smaller one cuts the same global batch into more pieces.

    Each halving is kept in `budgets.json` as [step, tokens], at once, so that the next attempt
    does not run into the same wall, and one that resumes before that step computes the steps up
    to it as they were computed.
    """

    def __init__(self, tokens: int, out: Path, earlier: Iterable[Path] = ()) -> None:
        """`earlier` are folders of earlier attempts; the smallest budget of a step counts."""
        self.tokens, self.path = tokens, out / NAME
        self.halved: list[list[int]] = []
        """[step, tokens]: the budget from that step on, where it is not the one asked for."""
        for path in (folder / NAME for folder in earlier):
            if path.is_file():
                self.halved += json.loads(path.read_text(encoding="utf-8"))
        self.halved = sorted(map(list, dict.fromkeys(map(tuple, self.halved))))
        if self.halved:
            self._write()

    def at(self, step: int) -> int:
        """The budget in tokens of a step."""
        return min((tokens for first, tokens in self.halved if first <= step), default=self.tokens)

    def halve(self, step: int, largest: int, error: Exception) -> None:
        """Halves the budget from a step on, to below its largest micro-batch.

        Raises the error again where nothing is left to halve.
        """
        tokens = min(self.at(step), largest) // 2
        if tokens < 1:
            raise error
        self.halved.append([step, tokens])
        self._write()
        log.warning(
            "out of memory in step %d: micro-batches of %d tokens from here on", step, tokens
        )

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.halved) + "\n", encoding="utf-8")


def fit_gradient(
    gradients: Gradients, budgets: Budgets, samples: list[Sample], step: int, prepared: Prepared
) -> Work:
    """Adds the gradient of a global batch, under a smaller budget from here on where memory ends.

    `prepared` may be of an older, larger budget. Ranks hear of each other's failure before they
    exchange gradients, and all halve. Raises the device's error where nothing is left to halve,
    or where the engine cannot go on after it.
    """
    engine, assembler = gradients.engine, gradients.assembler
    while True:
        if prepared.budget != budgets.at(step):
            prepared = gradients.prepare(samples, budgets.at(step))
        part, error = None, None
        try:
            part = gradients.add_part(samples, step, prepared)
        except (RuntimeError, MemoryError) as raised:
            if not is_out_of_memory(raised):
                raise
            # What the failed pass holds lives as long as the error's traceback.
            error = raised.with_traceback(None)
        is_whole = part is not None
        if engine.ranks > 1 and engine.can_agree:
            failed = torch.tensor(float(not is_whole), device=gradients.device)
            is_whole = total(failed).item() == 0
        if part is not None and is_whole:
            return gradients.whole(part)
        assembler.limit(budgets.at(step))
        largest = max(assembler.tokens(piece) for piece in assembler.cut(samples))
        error = error or torch.OutOfMemoryError("another rank of this training ran out of it")
        budgets.halve(step, largest, error)
        if not engine.discard():
            raise error
        release_freed_memory()

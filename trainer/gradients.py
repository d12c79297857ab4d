"""Loss and gradient of a global batch, summed over micro-batches, within the device's memory.

Micro-batches are assigned to ranks. A list above the token budget takes two passes: scores first,
then a backward pass for each group of forward passes. When a device runs out of memory, the budget
is halved and the gradient of the same global batch is computed again in smaller pieces.
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
from xsweep.trainer.batching import Assembler, MicroBatch, Targets, dropout_seed, pad_targets
from xsweep.trainer.distributed import balance, sum_over_ranks
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Scorer
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import ObjectiveSpec, TrainSpec
from xsweep.trainer.teachers import Sample

log = logging.getLogger(__name__)

BUDGETS_FILE = "budgets.json"


class Term(NamedTuple):
    """One loss of an objective."""

    weight: float
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    uses_labels: bool
    """True if the targets are the labels of the qrels, not the teacher's signal."""

    def sum_and_count(self, scores_QD: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum and count as defined in `xsweep.trainer.objectives`."""
        targets_QD = targets.labels_QD if self.uses_labels else targets.targets_QD
        return self.function(scores_QD, targets_QD, targets.mask_QD)


def build_terms(spec: ObjectiveSpec) -> list[Term]:
    """The losses of an objective; the first has weight 1."""
    losses = [(1.0, spec), *((term.weight, term) for term in spec.plus)]
    return [
        Term(
            weight,
            partial(OBJECTIVES[loss.name].function, **loss.parameters),
            # A single loss takes the teacher's only signal, labels or not.
            uses_labels=bool(spec.plus) and OBJECTIVES[loss.name].labels_only,
        )
        for weight, loss in losses
    ]


def count_terms(terms: list[Term], targets: Targets) -> list[float]:
    """The divisor of each loss's sum over a global batch, at least 1."""
    scores_QD = torch.zeros_like(targets.targets_QD)
    return [max(1.0, term.sum_and_count(scores_QD, targets)[1].item()) for term in terms]


def weigh_terms(
    terms: list[Term], scores_QD: Tensor, targets: Targets, counts: list[float]
) -> Tensor:
    """The contribution of some queries to the loss of the global batch with these counts.

    Worked: sums 6 and 2 with weights 1 and 0.5 and counts 3 and 4 give 6/3 + 0.5 · 2/4 = 2.25.
    """
    losses = [
        term.sum_and_count(scores_QD, targets)[0] * (term.weight / count)
        for term, count in zip(terms, counts, strict=True)
    ]
    return torch.stack(losses).sum()


class Budgets:
    """The token budget of a backward pass in every step.

    A smaller budget cuts the same global batch into more pieces. Each halving is written to
    `budgets.json` at once as [step, tokens], so that the next attempt does not run out of memory
    again, and computes the steps before it as they were computed.
    """

    def __init__(self, tokens: int, out: Path, earlier: Iterable[Path] = ()) -> None:
        """`earlier` are folders of earlier attempts; the smallest budget of a step counts."""
        self.tokens, self.path = tokens, out / BUDGETS_FILE
        found = {
            (step, halved)
            for path in (folder / BUDGETS_FILE for folder in earlier)
            if path.is_file()
            for step, halved in json.loads(path.read_text(encoding="utf-8"))
        }
        self.halved: list[list[int]] = [list(entry) for entry in sorted(found)]
        """[step, tokens]: the budget from that step on."""
        if self.halved:
            self._write()

    def at(self, step: int) -> int:
        """The budget of a step in tokens."""
        return min((tokens for first, tokens in self.halved if first <= step), default=self.tokens)

    def halve(self, step: int, largest_tokens: int, error: Exception) -> None:
        """Halves the budget from a step on, to at most half of its largest micro-batch.

        Raises the error if nothing is left to halve.
        """
        tokens = min(self.at(step), largest_tokens) // 2
        if tokens < 1:
            raise error
        self.halved.append([step, tokens])
        self._write()
        log.warning(
            "out of memory in step %d: micro-batches of %d tokens from here on", step, tokens
        )

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.halved) + "\n", encoding="utf-8")


class Prepared(NamedTuple):
    """This rank's share of a global batch, on the host."""

    budget: int
    """The token budget that the batch was cut for."""
    largest_tokens: int
    """Tokens of the largest micro-batch of any rank."""
    micro_batches: dict[int, MicroBatch]
    """This rank's micro-batches by their number in the global batch."""
    idle: list[MicroBatch]
    """A micro-batch for each backward pass that another rank computes beyond this one's."""


class Work(NamedTuple):
    """The result of computing one global batch."""

    loss: float
    """Loss of the global batch."""
    tokens: int
    """Tokens of the pairs that this rank computed, without padding."""
    slots: int
    """Token slots that this rank computed: tokens and padding."""


class Gradients:
    """Adds the gradients of global batches to an engine, under a token budget."""

    def __init__(
        self,
        spec: TrainSpec,
        engine: PlainEngine,
        scorer: Scorer,
        assembler: Assembler,
        budgets: Budgets,
    ) -> None:
        self.engine, self.scorer, self.assembler = engine, scorer, assembler
        self.budgets, self.seed = budgets, spec.seed
        self.terms = build_terms(spec.objective)
        self.device = scorer.model.device

    def prepare(self, samples: list[Sample], step: int) -> Prepared:
        """Assembles this rank's micro-batches of a step; may run in another thread."""
        assembler, budget = copy(self.assembler), self.budgets.at(step)
        assembler.limit(budget)
        pieces = assembler.cut(samples)
        costs = [assembler.tokens(piece) for piece in pieces]
        shares = balance(costs, self.engine.ranks)
        own = shares[self.engine.rank]
        passes = [sum(assembler.backward_passes(pieces[n]) for n in share) for share in shares]
        missing = max(passes) - passes[self.engine.rank]

        def assemble(number: int) -> MicroBatch:
            batch = assembler.assemble(pieces[number])
            return batch.pinned() if self.device.type == "cuda" else batch

        batches = {number: assemble(number) for number in own}
        return Prepared(budget, max(costs), batches, missing * [assemble(0)] if missing else [])

    def add(self, samples: list[Sample], step: int, prepared: Prepared | None = None) -> Work:
        """Adds the gradient of a step's samples; halves the budget where memory runs out.

        `prepared` may be missing or cut for an older, larger budget. The ranks exchange whether
        one of them ran out of memory before they exchange gradients, and then all halve. Raises
        the device's error if nothing is left to halve or the engine cannot continue after it.
        """
        while True:
            if prepared is None or prepared.budget != self.budgets.at(step):
                prepared = self.prepare(samples, step)
            loss = error = None
            try:
                loss = self._add_own(samples, step, prepared)
            except (RuntimeError, MemoryError) as raised:
                if not is_out_of_memory(raised):
                    raise
                # The traceback would keep the tensors of the failed pass alive.
                error = raised.with_traceback(None)
            all_done = self._all_done(loss is not None)
            if loss is not None and all_done:
                batches = prepared.micro_batches.values()
                tokens, slots = sum(b.tokens for b in batches), sum(b.slots for b in batches)
                return Work(sum_over_ranks(loss).item(), tokens, slots)
            error = error or torch.OutOfMemoryError("another rank of this training ran out of it")
            self.budgets.halve(step, prepared.largest_tokens, error)
            if not self.engine.discard():
                raise error
            release_freed_memory()

    def _all_done(self, done: bool) -> bool:
        """True if no rank failed; only this rank's state where the ranks cannot exchange it."""
        if self.engine.ranks == 1 or not self.engine.can_agree:
            return done
        failed = torch.tensor(float(not done), device=self.device)
        return sum_over_ranks(failed).item() == 0

    def _add_own(self, samples: list[Sample], step: int, prepared: Prepared) -> Tensor:
        """Adds the gradient of this rank's micro-batches and returns their loss."""
        counts = count_terms(self.terms, pad_targets(samples))
        loss = torch.zeros((), device=self.device)
        for number, batch in prepared.micro_batches.items():
            loss += self._backward(
                batch.to(self.device), counts, dropout_seed(self.seed, step, number)
            )
        # ZeRO-2 exchanges gradients in every backward pass: a rank that has finished takes part
        # with a loss of weight 0.
        for batch in prepared.idle:
            first = batch.to(self.device).forwards[:1]
            self.engine.backward(self.engine(first).sum() * 0)
        return loss

    def _backward(self, batch: MicroBatch, counts: list[float], seed: int) -> Tensor:
        """Adds the gradient of one micro-batch and returns its part of the loss."""
        torch.manual_seed(seed)
        if len(batch.groups) == 1:
            scores_QD = batch.matrix(self.engine(batch.forwards))
            loss = weigh_terms(self.terms, scores_QD, batch.targets, counts)
            self.engine.backward(loss)
            return loss.detach()
        # Gao et al. 2021, section 4 (https://arxiv.org/abs/2101.06983): dL/ds from all scores
        # first. Both passes run the same forward passes in the same order from the same seed, so
        # that dropout is the same.
        with torch.no_grad():
            logits_P = torch.cat([self.scorer(batch.forwards[group]) for group in batch.groups])
        logits_P.requires_grad_()
        loss = weigh_terms(self.terms, batch.matrix(logits_P), batch.targets, counts)
        (slopes_P,) = torch.autograd.grad(loss, logits_P)
        torch.manual_seed(seed)
        start = 0
        for group in batch.groups:
            again_P = self.engine(batch.forwards[group])
            self.engine.backward((again_P * slopes_P[start : start + len(again_P)]).sum())
            start += len(again_P)
        return loss.detach()

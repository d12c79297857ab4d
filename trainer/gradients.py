"""The loss and gradient of a global batch: pieces dealt to the ranks, long lists in two passes."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.batches import (
    Assembler,
    MicroBatch,
    Targets,
    dropout_seed,
    group_passes,
    pad_targets,
)
from trainer.engines import Engine
from trainer.objectives import OBJECTIVES
from trainer.ranks import deal, total
from trainer.scorer import Scorer, slots
from trainer.specs import ObjectiveSpec, TrainSpec
from trainer.teachers import Sample


class Term(NamedTuple):
    """One loss of an objective."""

    weight: float
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    of_labels: bool

    def parts(self, scores_QD: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum and count, see `trainer.objectives`."""
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

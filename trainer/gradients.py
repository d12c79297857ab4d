"""The gradient of a global batch: pieces dealt to the ranks, long lists in two passes."""

from typing import NamedTuple

import torch

from trainer.batches import Assembler, MicroBatch, dropout_seed, group_passes, pad_targets
from trainer.engines import Engine
from trainer.objectives.terms import build_terms, count_terms, weigh_terms
from trainer.ranks import deal
from trainer.scorer import Scorer, slots
from trainer.specs import TrainSpec
from trainer.teachers import Sample


class Work(NamedTuple):
    """What computing one global batch came to."""

    loss: float
    """Of the whole global batch."""
    tokens: int
    """True tokens of the pairs that this rank computed."""
    slots: int
    """Token slots that it computed for them: tokens and padding."""


class Gradients:
    """Adds up the gradient of global batches in an engine, under a token budget."""

    def __init__(
        self, spec: TrainSpec, engine: Engine, scorer: Scorer, assembler: Assembler
    ) -> None:
        self.engine, self.scorer, self.assembler = engine, scorer, assembler
        self.terms = build_terms(spec.objective)
        self.seed = spec.seed

    def add(self, samples: list[Sample], step: int) -> Work:
        """The gradient of a step's samples: this rank's pieces, which make the whole with others'.

        Every micro-batch draws its dropout from (seed, step, micro-batch), whoever computes it.
        """
        counts = count_terms(self.terms, pad_targets(samples))
        pieces = self.assembler.cut(samples)
        passes = [self.assembler.backward_passes(piece) for piece in pieces]
        hands = deal([self.assembler.tokens(piece) for piece in pieces], self.engine.ranks)
        device = self.scorer.model.device
        loss = torch.zeros((), device=device)
        tokens = slots = 0
        for number in hands[self.engine.rank]:
            batch = self.assembler.assemble(pieces[number]).to(device)
            random_state = dropout_seed(self.seed, step, number)
            if passes[number] == 1:
                loss += self._in_one_pass(batch, counts, random_state)
            else:
                groups = self._groups(batch)
                assert len(groups) == passes[number], "other ranks count on this many passes"
                loss += self._in_two_passes(batch, groups, counts, random_state)
            tokens += batch.tokens
            slots += batch.slots
        taken = [sum(passes[number] for number in hand) for hand in hands]
        if taken[self.engine.rank] < max(taken):
            # ZeRO-2 exchanges gradients in every backward pass, so that a rank with nothing left
            # computes something at no weight while others go on.
            idle = self.assembler.assemble(pieces[0]).to(device).forwards[:1]
            for _ in range(max(taken) - taken[self.engine.rank]):
                self.engine.backward(self.engine(idle).sum() * 0)
        return Work(self.engine.total(loss), tokens, slots)

    def _in_one_pass(
        self, batch: MicroBatch, counts: list[float], random_state: int
    ) -> torch.Tensor:
        torch.manual_seed(random_state)
        scores_QD = batch.matrix(self.engine(batch.forwards))
        loss = weigh_terms(self.terms, scores_QD, batch.targets, counts)
        self.engine.backward(loss)
        return loss.detach()

    def _groups(self, batch: MicroBatch) -> list[slice]:
        return group_passes(list(map(slots, batch.forwards)), self.assembler.micro_batch_tokens)

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

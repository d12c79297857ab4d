"""Loss and gradient of a global batch, summed over micro-batches, within the device's memory.

With R ranks, each computes some pairs of R micro-batches at a time and gets the scores of all
others, from which every rank has the loss and its slopes. A share above the token budget takes two
passes: scores first, then a backward pass for each group of forward passes. When a device runs out
of memory, the budget is halved and the gradient of the same global batch is computed again in
smaller pieces.
"""

import json
import logging
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.device import is_out_of_memory, release_freed_memory
from xsweep.trainer.batching import (
    Assembler,
    Share,
    Targets,
    deal,
    dropout_seed,
    group,
    pad_targets,
)
from xsweep.trainer.distributed import sum_over_ranks
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Scorer
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import ObjectiveSpec, TrainSpec
from xsweep.trainer.teachers import Sample

log = logging.getLogger(__name__)

BUDGETS_FILE = "budgets.json"
Result = TypeVar("Result")


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
        found = (entry for folder in earlier for entry in _read_budgets(folder / BUDGETS_FILE))
        self.halved: list[list[int]] = [list(entry) for entry in sorted(set(found))]
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
        with atomic_write(self.path) as draft:
            draft.write_text(json.dumps(self.halved) + "\n", encoding="utf-8")


def _read_budgets(path: Path) -> list[tuple[int, int]]:
    """The [step, tokens] of a file; none, with a warning, if it is not readable as such."""
    if not path.is_file():
        return []
    try:
        return [(int(step), int(tokens)) for step, tokens in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s is ignored, it is not readable: %s", path, error)
        return []


class Prepared(NamedTuple):
    """This rank's part of a global batch, on the host."""

    budget: int
    """The token budget that the batch was cut for."""
    largest_tokens: int
    """Tokens of the largest share of any rank."""
    shares: list[Share]
    """This rank's share of each set of micro-batches that the ranks compute together."""


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
        """Assembles this rank's shares of a step."""
        assembler, budget, ranks = copy(self.assembler), self.budgets.at(step), self.engine.ranks
        assembler.limit(budget)
        lengths = assembler.lengths(samples)
        micro_batches = group([int(each.sum()) for each in lengths], budget)
        shares: list[Share] = []
        pairs = largest_tokens = 0
        for start in range(0, len(micro_batches), ranks):
            together = micro_batches[start : start + ranks]
            tokens = [np.concatenate(lengths[each]) for each in together]
            tokens_P = np.concatenate(tokens)
            dealt = deal(tokens, ranks, assembler.cut, merged=assembler.merges_pieces)
            used = [sum(int(tokens_P[rows].sum()) for rows in each.values()) for each in dealt]
            chosen = samples[together[0].start : together[-1].stop]
            share = assembler.assemble(chosen, dealt[self.engine.rank], pairs)
            if ranks > 1:
                passes = (assembler.backward_passes(tokens_P, [*each.values()]) for each in dealt)
                shortest = assembler.assemble(chosen, {0: tokens_P.argsort()[:1]})
                idle = (max(passes) - len(share.groups)) * tuple(shortest.forwards)
                share = share._replace(idle=idle)
            shares.append(share.pinned() if self.device.type == "cuda" else share)
            pairs += len(tokens_P)
            largest_tokens = max(largest_tokens, *used)
        return Prepared(budget, largest_tokens, shares)

    def add(
        self,
        samples: list[Sample],
        step: int,
        prepared: Prepared | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Work:
        """Adds the gradient of a step's samples; halves the budget where memory runs out.

        `prepared` may be missing or cut for an older, larger budget. A rank that ran out of memory
        takes part in all exchanges of the step; then all halve. Raises the device's error if
        nothing is left to halve. `meanwhile` is called once all passes of an attempt are launched,
        before the host waits for the device.
        """
        while True:
            if prepared is None or prepared.budget != self.budgets.at(step):
                prepared = self.prepare(samples, step)
            errors: list[Exception] = []
            shares = prepared.shares
            loss = self._add_shares(samples, step, shares, errors)
            meanwhile()
            if not self._any_failed(errors):
                tokens, slots = sum(s.tokens for s in shares), sum(s.slots for s in shares)
                return Work(loss.item(), tokens, slots)
            errors.append(torch.OutOfMemoryError("another rank of this training ran out of it"))
            self.budgets.halve(step, prepared.largest_tokens, errors[0])
            self.engine.discard()
            release_freed_memory()

    def _any_failed(self, errors: list[Exception]) -> bool:
        """True if any rank ran out of memory."""
        if self.engine.ranks == 1:
            return bool(errors)
        failed = torch.tensor(float(len(errors)), device=self.device)
        return sum_over_ranks(failed).item() > 0

    def _add_shares(
        self, samples: list[Sample], step: int, shares: list[Share], errors: list[Exception]
    ) -> Tensor:
        """Adds the gradient of this rank's shares and returns the loss of the global batch.

        An out-of-memory error is added to `errors`; after it, only exchanges take place.
        """
        counts = count_terms(self.terms, pad_targets(samples))
        loss = torch.zeros((), device=self.device)
        for number, on_host in enumerate(shares):
            share = on_host.to(self.device)
            seeds = [dropout_seed(self.seed, step, *place) for place in share.numbers]
            logits_P = _within_memory(errors, self._score, share, seeds)
            scores_QD = self._exchange(share, logits_P).requires_grad_()
            part = weigh_terms(self.terms, scores_QD, share.targets, counts)
            (slopes_QD,) = torch.autograd.grad(part, scores_QD)
            slopes_P = slopes_QD.flatten()[share.places_P]
            is_last = number == len(shares) - 1
            self._backward(share, seeds, logits_P, slopes_P, is_last, errors)
            loss += part.detach()
        self.engine.reduce()
        return loss

    def _score(self, share: Share, seeds: list[int]) -> Tensor:
        """The logits of a share, with their graph if one backward pass takes them all."""
        if len(share.groups) == 1:
            return self.engine(share.forwards, seeds)
        with torch.no_grad():
            parts = [self.scorer(share.forwards[part], seeds[part]) for part in share.groups]
        return torch.cat([torch.zeros(0, device=self.device), *parts])

    def _exchange(self, share: Share, logits_P: Tensor | None) -> Tensor:
        """The scores of all queries of a share, also those that other ranks computed."""
        if logits_P is None:  # memory ran out
            scores_QD = torch.zeros_like(share.targets.targets_QD)
        else:
            scores_QD = share.matrix(logits_P.detach())
        return sum_over_ranks(scores_QD)

    def _backward(
        self,
        share: Share,
        seeds: list[int],
        logits_P: Tensor | None,
        slopes_P: Tensor,
        is_last: bool,
        errors: list[Exception],
    ) -> None:
        """Adds the gradient of a share, given the loss's slope for each logit.

        Above the budget, passes run again, see Gao et al. 2021, section 4
        (https://arxiv.org/abs/2101.06983): from the same seeds, so dropout is the same.
        """
        passes = [*share.groups, *share.idle]

        def backward(number: int, start: int) -> int:
            each, logits = passes[number], logits_P
            if not isinstance(each, slice):
                loss = self.engine([each]).sum() * 0
            else:
                if len(share.groups) > 1:
                    logits = self.engine(share.forwards[each], seeds[each])
                assert logits is not None
                start += len(logits)
                loss = (logits * slopes_P[start - len(logits) : start]).sum()
            self.engine.backward(loss, last=is_last and number == len(passes) - 1)
            return start

        start: int | None = 0
        for number in range(len(passes)):
            start = _within_memory(errors, backward, number, start)
            self.engine.end_pass()


def _within_memory(
    errors: list[Exception], work: Callable[..., Result], *arguments: Any
) -> Result | None:
    """Does work unless memory has run out before; an error that says so is added to `errors`."""
    if errors:
        return None
    try:
        return work(*arguments)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The traceback would keep the tensors of the failed pass alive.
        errors.append(error.with_traceback(None))
        return None

"""An objective at work: one loss, or the weighted sum of several on the same scores."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.objectives.signals import labels_only
from trainer.objectives.table import OBJECTIVES
from trainer.specs import ObjectiveSpec


class Targets(NamedTuple):
    """What Q queries by D documents are to learn."""

    targets_QD: Tensor
    """fp32: the teacher's signal."""
    labels_QD: Tensor
    """fp32: 1 for relevant documents, else 0."""
    mask_QD: Tensor
    """True where a document stands."""


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
            of_labels=bool(spec.plus) and labels_only(loss.name),
        )
        for weight, loss in losses
    ]


def count_terms(terms: list[Term], targets: Targets) -> list[float]:
    """What each loss's sum over a global batch is divided by; at least 1."""
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

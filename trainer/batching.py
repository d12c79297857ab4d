"""The content of every global batch, a pure function of (seed, step), and its cut into pieces.

A global batch is cut into micro-batches (one backward each) of whole queries under a token
budget; a micro-batch is computed in forward passes over pairs of like length, end to end or
padded to the longest. The objective sees a whole micro-batch at once and sums are divided by the
count of the global batch, so the cut changes the gradient by rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.scoring import batches as cut_by_length
from xsweep.evaluator.scoring import batches_without_padding
from xsweep.evaluator.varlen.attention import Packing, pack
from xsweep.trainer.forward import Inputs, slots
from xsweep.trainer.specs import FORWARD_TOKENS, TrainSpec
from xsweep.trainer.teachers.teacher import Sample, Teacher

_ORDER, _SAMPLE, _DROPOUT = range(3)


class Targets(NamedTuple):
    """The signal that Q queries by D documents are to learn."""

    targets_QD: Tensor
    """fp32: the teacher's signal."""
    labels_QD: Tensor
    """fp32: 1 for relevant documents, else 0."""
    mask_QD: Tensor
    """True where a document stands."""


class MicroBatch(NamedTuple):
    """Q whole queries by at most D documents: P pairs, ready for the model."""

    forwards: list[Inputs]
    """Of each forward pass, longest pairs first."""
    places_P: Tensor
    """Where the pair behind each logit stands in the flattened Q by D matrix."""
    targets: Targets
    tokens: int
    """True tokens of the pairs, special tokens included."""
    slots: int
    """Token slots computed: tokens and padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch with its tensors on a device; from pinned memory without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """The same batch in memory that a GPU can copy from while it computes."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        return self._replace(
            forwards=[
                inputs.each(change)
                if isinstance(inputs, Packing)
                else {name: change(tensor) for name, tensor in inputs.items()}
                for inputs in self.forwards
            ],
            places_P=change(self.places_P),
            targets=Targets(*map(change, self.targets)),
        )

    def matrix(self, logits_P: Tensor) -> Tensor:
        """The logits as scores_QD, 0 where no document stands."""
        shape = self.targets.mask_QD.shape
        return logits_P.new_zeros(shape.numel()).scatter(0, self.places_P, logits_P).view(shape)


def draw_samples(teacher: Teacher, seed: int, step: int, batch_queries: int) -> list[Sample]:
    """The samples of one global batch: the next units of endless, reshuffled passes."""
    samples = []
    for place in range(batch_queries):
        epoch, position = divmod(step * batch_queries + place, len(teacher))
        unit = int(_pass_order(seed, epoch, len(teacher))[position])
        # Making a generator takes longer than reading a line.
        chance = (
            np.random.default_rng([seed, _SAMPLE, step, place]) if teacher.uses_chance else None
        )
        samples.append(teacher.draw(unit, chance))
    return samples


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The random state under which one micro-batch's dropout is drawn, whoever computes it."""
    return int(np.random.SeedSequence([seed, _DROPOUT, step, micro_batch]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _pass_order(seed: int, epoch: int, units: int) -> np.ndarray:
    order = np.arange(units, dtype=np.int32 if units < 2**31 else np.int64)
    np.random.default_rng([seed, _ORDER, epoch]).shuffle(order)
    return order


def pad_targets(samples: Sequence[Sample]) -> Targets:
    """Targets, labels and mask of samples with up to D documents."""
    shape = len(samples), max(len(sample.doc_ids) for sample in samples)
    targets_QD, labels_QD = torch.zeros(shape), torch.zeros(shape)
    mask_QD = torch.zeros(shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        columns = slice(len(sample.doc_ids))
        labels_D = sample.targets_D if sample.labels_D is None else sample.labels_D
        targets_QD[row, columns] = torch.from_numpy(sample.targets_D)
        labels_QD[row, columns] = torch.from_numpy(labels_D)
        mask_QD[row, columns] = True
    return Targets(targets_QD, labels_QD, mask_QD)


def group_passes(slots: Sequence[int], budget: int) -> list[slice]:
    """Consecutive forward passes whose slots add up to at most the budget, at least one in each.

    `group_passes([50, 40, 30, 90], 100)` gives [slice(0, 2), slice(2, 3), slice(3, 4)].
    """
    groups, start, used = [], 0, 0
    for place, size in enumerate(slots):
        if place > start and used + size > budget:
            groups.append(slice(start, place))
            start, used = place, 0
        used += size
    return [*groups, slice(start, len(slots))]


class Assembler:
    """Turns samples into micro-batches of token ids."""

    def __init__(
        self,
        spec: TrainSpec,
        encoder: PairEncoder,
        documents: TokenStore,
        queries: Mapping[str, np.ndarray],
        *,
        packed: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`packed` puts the pairs of a forward pass end to end instead of padding them.

        `device` is where they will be computed: a GPU takes a micro-batch in one pass, unless
        `forward_tokens` was set.
        """
        self.packed, self.device = packed, torch.device(device)
        self.encoder, self.documents, self.queries = encoder, documents, queries
        self.sides_tokens = spec.query_tokens, spec.document_tokens
        self.settings = spec.optimisation
        self.limit(spec.optimisation.micro_batch_tokens)

    def limit(self, micro_batch_tokens: int) -> None:
        """Sets the budget of a backward pass; that of a forward pass is never above it."""
        self.micro_batch_tokens = micro_batch_tokens
        is_left = self.settings.forward_tokens == FORWARD_TOKENS
        whole = is_left and self.device.type == "cuda"
        self.forward_tokens = (
            micro_batch_tokens if whole else min(self.settings.forward_tokens, micro_batch_tokens)
        )

    def cut(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Micro-batches: consecutive samples up to the token budget, at least one in each."""
        micro_batches: list[list[Sample]] = []
        left = 0
        for sample in samples:
            tokens = self.tokens([sample])
            if tokens > left or not micro_batches:
                micro_batches.append([])
                left = self.micro_batch_tokens
            micro_batches[-1].append(sample)
            left -= tokens
        return micro_batches

    def tokens(self, samples: Sequence[Sample]) -> int:
        """Tokens of the samples' pairs without padding: what computing them costs."""
        return sum(int(self._lengths(sample).sum()) for sample in samples)

    def backward_passes(self, samples: Sequence[Sample]) -> int:
        """How many backward passes a micro-batch takes: more than one for a list above the budget.

        What fits is one pass; the forward passes of what does not are grouped under the budget.
        """
        lengths_P = np.concatenate([self._lengths(sample) for sample in samples])
        if lengths_P.sum() <= self.micro_batch_tokens:
            return 1
        used = [
            int(lengths_P[rows].sum() if self.packed else len(rows) * lengths_P[rows].max())
            for rows in self._rows(lengths_P)
        ]
        return len(group_passes(used, self.micro_batch_tokens))

    def assemble(self, samples: Sequence[Sample]) -> MicroBatch:
        """The model inputs of one micro-batch."""
        targets = pad_targets(samples)
        pairs = [
            self.encoder.encode(
                self.queries[sample.query_id], self.documents[doc_id], *self.sides_tokens
            )
            for sample in samples
            for doc_id in sample.doc_ids
        ]
        lengths_P = np.array([len(pair.input_ids) for pair in pairs])
        rows_of_passes = self._rows(lengths_P)
        forwards = [self._inputs([pairs[row] for row in rows]) for rows in rows_of_passes]
        order_P = torch.from_numpy(np.concatenate(rows_of_passes))
        return MicroBatch(
            forwards,
            targets.mask_QD.flatten().nonzero()[:, 0][order_P],
            targets,
            tokens=int(lengths_P.sum()),
            slots=sum(map(slots, forwards)),
        )

    def _inputs(self, pairs: Sequence[PairIds]) -> Inputs:
        return pack(pairs) if self.packed else self.encoder.collate(pairs)

    def _rows(self, lengths_P: np.ndarray) -> list[np.ndarray]:
        """The pairs of each forward pass, longest first."""
        longest_first = np.argsort(-lengths_P, kind="stable")
        cut = batches_without_padding if self.packed else cut_by_length
        return list(cut(lengths_P, longest_first, self.forward_tokens))

    def _lengths(self, sample: Sample) -> np.ndarray:
        query = np.array([len(self.queries[sample.query_id])])
        documents = np.array([len(self.documents[doc_id]) for doc_id in sample.doc_ids])
        return self.encoder.lengths(query, documents, *self.sides_tokens)

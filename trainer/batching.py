"""Global batches as a function of (seed, step), and their cut into micro-batches.

A micro-batch holds whole queries under a token budget and takes one backward pass. It runs as
several forward passes over pairs of similar length, packed end to end or padded to the longest.
The objective sees a whole micro-batch, and sums are divided by the count of the global batch, so
the cut changes the gradient only by rounding.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import batches, batches_without_padding
from xsweep.evaluator.varlen.attention import pack
from xsweep.trainer.forward import Inputs, slots
from xsweep.trainer.specs import FORWARD_TOKENS, TrainSpec
from xsweep.trainer.teachers import Sample, Teacher

_ORDER, _SAMPLE, _DROPOUT = range(3)


class Targets(NamedTuple):
    """The training signal for Q queries with up to D documents."""

    targets_QD: Tensor
    """fp32: the teacher's signal."""
    labels_QD: Tensor
    """fp32: 1 for relevant documents, else 0."""
    mask_QD: Tensor
    """bool: True for documents, False for padding."""


class MicroBatch(NamedTuple):
    """Q whole queries with up to D documents: P pairs, ready for the model."""

    forwards: list[Inputs]
    """Inputs of each forward pass, longest pairs first."""
    groups: list[slice]
    """Forward passes of each backward pass; more than one for a list above the token budget."""
    places_P: Tensor
    """Index of each logit's pair in the flattened Q by D matrix."""
    targets: Targets
    tokens: int
    """Tokens of the pairs, special tokens included, padding excluded."""
    slots: int
    """Token slots computed: tokens and padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Copies the tensors to a device, asynchronously from pinned memory."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), self)

    def pinned(self) -> "MicroBatch":
        """Copies the tensors to memory that a GPU can read while it computes."""
        return tree_map_only(Tensor, Tensor.pin_memory, self)

    def matrix(self, logits_P: Tensor) -> Tensor:
        """The logits as scores_QD, 0 in the padding."""
        shape = self.targets.mask_QD.shape
        return logits_P.new_zeros(shape.numel()).scatter(0, self.places_P, logits_P).view(shape)


def draw_samples(teacher: Teacher, seed: int, step: int, batch_queries: int) -> list[Sample]:
    """Draws the samples of one global batch: the next units of endless, reshuffled passes."""
    samples = []
    for place in range(batch_queries):
        epoch, position = divmod(step * batch_queries + place, len(teacher))
        unit = int(pass_order(seed, epoch, len(teacher))[position])
        # Creating a generator takes longer than reading a line.
        generator = (
            np.random.default_rng([seed, _SAMPLE, step, place]) if teacher.uses_chance else None
        )
        samples.append(teacher.draw(unit, generator))
    return samples


@lru_cache(maxsize=2)
def pass_order(seed: int, epoch: int, units: int) -> np.ndarray:
    """The order of the teacher's units in one pass over them."""
    order = np.arange(units, dtype=np.int32 if units < 2**31 else np.int64)
    np.random.default_rng([seed, _ORDER, epoch]).shuffle(order)
    return order


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of one micro-batch's dropout, the same on every rank."""
    return int(np.random.SeedSequence([seed, _DROPOUT, step, micro_batch]).generate_state(1)[0])


def pad_targets(samples: Sequence[Sample]) -> Targets:
    """Pads the targets and labels of samples to the longest list."""
    sizes_Q = np.array([len(sample.doc_ids) for sample in samples])
    mask_QD = np.arange(sizes_Q.max()) < sizes_Q[:, None]
    targets_QD, labels_QD = np.zeros((2, *mask_QD.shape), dtype=np.float32)
    targets_QD[mask_QD] = np.concatenate([sample.targets_D for sample in samples])
    labels_QD[mask_QD] = np.concatenate([sample.labels_D for sample in samples])
    return Targets(*map(torch.from_numpy, (targets_QD, labels_QD, mask_QD)))


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
        """`packed` concatenates the pairs of a forward pass instead of padding them.

        `device` is the device that computes them: a GPU takes a micro-batch in one forward pass
        unless `forward_tokens` is set.
        """
        self.packed, self.device = packed, torch.device(device)
        self.encoder, self.documents, self.queries = encoder, documents, queries
        self.side_tokens = spec.query_tokens, spec.document_tokens
        self.settings = spec.optimisation
        self.limit(spec.optimisation.micro_batch_tokens)

    def limit(self, micro_batch_tokens: int) -> None:
        """Sets the token budget of a backward pass, which also bounds that of a forward pass."""
        self.micro_batch_tokens = micro_batch_tokens
        is_default = self.settings.forward_tokens == FORWARD_TOKENS
        whole = is_default and self.device.type == "cuda"
        self.forward_tokens = (
            micro_batch_tokens if whole else min(self.settings.forward_tokens, micro_batch_tokens)
        )

    def cut(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Cuts into micro-batches: consecutive samples up to the budget, at least one in each."""
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
        """Counts the tokens of the samples' pairs without padding, the cost of computing them."""
        return int(self._lengths(samples).sum())

    def backward_passes(self, samples: Sequence[Sample]) -> int:
        """Counts the backward passes of a micro-batch: above 1 for a list above the budget."""
        return len(self._plan(self._lengths(samples))[1])

    def assemble(self, samples: Sequence[Sample]) -> MicroBatch:
        """Encodes the pairs of one micro-batch."""
        targets = pad_targets(samples)
        pairs = [
            self.encoder.encode(
                self.queries[sample.query_id], self.documents[doc_id], *self.side_tokens
            )
            for sample in samples
            for doc_id in sample.doc_ids
        ]
        lengths_P = np.array([len(pair.input_ids) for pair in pairs])
        rows_of_passes, groups = self._plan(lengths_P)
        build = pack if self.packed else self.encoder.collate
        forwards = [build([pairs[row] for row in rows]) for rows in rows_of_passes]
        order_P = torch.from_numpy(np.concatenate(rows_of_passes))
        return MicroBatch(
            forwards,
            groups,
            targets.mask_QD.flatten().nonzero()[:, 0][order_P],
            targets,
            tokens=int(lengths_P.sum()),
            slots=sum(map(slots, forwards)),
        )

    def _plan(self, lengths_P: np.ndarray) -> tuple[list[np.ndarray], list[slice]]:
        """The pairs of each forward pass, longest first, and the forward passes of each backward
        pass: all of them in one if the micro-batch fits the budget."""
        longest_first = np.argsort(-lengths_P, kind="stable")
        cut = batches_without_padding if self.packed else batches
        passes = list(cut(lengths_P, longest_first, self.forward_tokens))
        if lengths_P.sum() <= self.micro_batch_tokens:
            return passes, [slice(0, len(passes))]
        used = [
            int(lengths_P[rows].sum() if self.packed else len(rows) * lengths_P[rows].max())
            for rows in passes
        ]
        return passes, group_passes(used, self.micro_batch_tokens)

    def _lengths(self, samples: Sequence[Sample]) -> np.ndarray:
        """Tokens of every pair."""
        lengths = []
        for sample in samples:
            query = np.array([len(self.queries[sample.query_id])])
            documents = np.array([len(self.documents[doc_id]) for doc_id in sample.doc_ids])
            lengths.append(self.encoder.lengths(query, documents, *self.side_tokens))
        return np.concatenate(lengths)


def group_passes(slots: Sequence[int], budget: int) -> list[slice]:
    """Groups consecutive forward passes up to a budget of token slots, at least one in each group.

    `group_passes([50, 40, 30, 90], 100)` gives [slice(0, 2), slice(2, 3), slice(3, 4)].
    """
    groups, start, used = [], 0, 0
    for place, size in enumerate(slots):
        if place > start and used + size > budget:
            groups.append(slice(start, place))
            start, used = place, 0
        used += size
    return [*groups, slice(start, len(slots))]

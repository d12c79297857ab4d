"""The content of every global batch, a pure function of (seed, step), and its cut into pieces.

A global batch is cut into micro-batches (one backward each) of whole queries under a token
budget; a micro-batch is computed in forward passes over pairs of like length, so that little is
padded. The objective sees a whole micro-batch at once and sums are divided by the count of the
global batch, so the cut changes the gradient by rounding only.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluator.pairs import PairEncoder
from evaluator.scoring import batches as cut_by_length
from evaluator.tokens import TokenStore
from trainer.specs import TrainSpec
from trainer.teachers import Sample, Teacher

_ORDER, _SAMPLE, _DROPOUT = range(3)


class MicroBatch(NamedTuple):
    """Q whole queries by at most D documents: P pairs, ready for the model."""

    forwards: list[dict[str, Tensor]]
    """Model inputs of each forward pass, longest pairs first."""
    places_P: Tensor
    """Where the pair behind each logit stands in the flattened Q by D matrix."""
    targets_QD: Tensor
    mask_QD: Tensor
    tokens: int
    """True tokens of the pairs, special tokens included."""
    slots: int
    """Token slots computed: tokens and padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch with its tensors on a device."""
        forwards = [{name: t.to(device) for name, t in inputs.items()} for inputs in self.forwards]
        return self._replace(
            forwards=forwards,
            places_P=self.places_P.to(device),
            targets_QD=self.targets_QD.to(device),
            mask_QD=self.mask_QD.to(device),
        )

    def matrix(self, logits_P: Tensor) -> Tensor:
        """The logits as scores_QD, 0 where no document stands."""
        shape = self.mask_QD.shape
        return logits_P.new_zeros(shape.numel()).scatter(0, self.places_P, logits_P).view(shape)


def draw_samples(teacher: Teacher, seed: int, step: int, batch_queries: int) -> list[Sample]:
    """The samples of one global batch: the next units of endless, reshuffled passes."""
    samples = []
    for place in range(batch_queries):
        epoch, position = divmod(step * batch_queries + place, len(teacher))
        unit = int(_pass_order(seed, epoch, len(teacher))[position])
        generator = np.random.default_rng([seed, _SAMPLE, step, place])
        samples.append(teacher.draw(unit, generator))
    return samples


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The random state under which one micro-batch's dropout is drawn, whoever computes it."""
    return int(np.random.SeedSequence([seed, _DROPOUT, step, micro_batch]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _pass_order(seed: int, epoch: int, units: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(units)


def pad_targets(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(targets_QD fp32, mask_QD bool) of samples with up to D documents."""
    shape = len(samples), max(len(sample.doc_ids) for sample in samples)
    targets_QD, mask_QD = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        targets_QD[row, : len(sample.doc_ids)] = torch.from_numpy(sample.targets_D)
        mask_QD[row, : len(sample.doc_ids)] = True
    return targets_QD, mask_QD


class Assembler:
    """Turns samples into micro-batches of token ids."""

    def __init__(
        self,
        spec: TrainSpec,
        encoder: PairEncoder,
        documents: TokenStore,
        queries: Mapping[str, np.ndarray],
    ) -> None:
        self.encoder, self.documents, self.queries = encoder, documents, queries
        self.sides_tokens = spec.query_tokens, spec.document_tokens
        self.micro_batch_tokens = spec.optimisation.micro_batch_tokens
        self.forward_tokens = spec.optimisation.forward_tokens

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

    def assemble(self, samples: Sequence[Sample]) -> MicroBatch:
        """The model inputs of one micro-batch."""
        targets_QD, mask_QD = pad_targets(samples)
        pairs = [
            self.encoder.encode(
                self.queries[sample.query_id], self.documents[doc_id], *self.sides_tokens
            )
            for sample in samples
            for doc_id in sample.doc_ids
        ]
        lengths_P = np.array([len(pair.input_ids) for pair in pairs])
        longest_first = np.argsort(-lengths_P, kind="stable")
        forwards = [
            self.encoder.collate([pairs[row] for row in rows])
            for rows in cut_by_length(lengths_P, longest_first, self.forward_tokens)
        ]
        return MicroBatch(
            forwards,
            mask_QD.flatten().nonzero()[:, 0][torch.from_numpy(longest_first)],
            targets_QD,
            mask_QD,
            tokens=int(lengths_P.sum()),
            slots=sum(inputs["input_ids"].numel() for inputs in forwards),
        )

    def _lengths(self, sample: Sample) -> np.ndarray:
        query = np.array([len(self.queries[sample.query_id])])
        documents = np.array([len(self.documents[doc_id]) for doc_id in sample.doc_ids])
        return self.encoder.lengths(query, documents, *self.sides_tokens)

"""Global batches as a function of (seed, step), and their cut into micro-batches and pieces.

A micro-batch holds whole queries under a token budget. Its pairs are cut into pieces of equal cost,
which ranks share; a rank's pieces run as forward passes over pairs of similar length, packed end to
end or padded to the longest. The objective sees whole queries, and sums are divided by the count of
the global batch, so cuts and shares change the gradient only by rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import batches, batches_without_padding, share_out
from xsweep.evaluator.varlen.attention import pack
from xsweep.trainer.forward import Inputs, slots
from xsweep.trainer.specs import FORWARD_TOKENS, RANKS, TrainSpec
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


class Share(NamedTuple):
    """Some or all of the pairs of Q whole queries with up to D documents: P pairs for the model."""

    forwards: list[Inputs]
    """Inputs of each forward pass."""
    numbers: list[tuple[int, int]]
    """Seed of each forward pass's dropout: its piece's number, and its own number in the piece;
    0 where each pair draws its own."""
    groups: list[slice]
    """Forward passes of each backward pass; more than one above the token budget."""
    places_P: Tensor
    """Index of each logit's pair in the flattened Q by D matrix."""
    targets: Targets
    tokens: int
    """Tokens of the pairs, special tokens included, padding excluded."""
    slots: int
    """Token slots computed: tokens and padding."""
    idle: tuple[Inputs, ...] = ()
    """A forward pass of one pair for each backward pass that another rank computes beyond these:
    ranks may exchange gradients in each."""

    def to(self, device: torch.device) -> "Share":
        """Copies the tensors to a device, asynchronously from pinned memory."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), self)

    def pinned(self) -> "Share":
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


def dropout_seed(seed: int, step: int, piece: int, forward: int) -> int:
    """The seed of the dropout in a piece's forward pass, the same on every rank."""
    place = [seed, _DROPOUT, step, piece, forward]
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def pad_targets(samples: Sequence[Sample]) -> Targets:
    """Pads the targets and labels of samples to the longest list."""
    sizes_Q = np.array([len(sample.doc_ids) for sample in samples])
    mask_QD = np.arange(sizes_Q.max()) < sizes_Q[:, None]
    targets_QD, labels_QD = np.zeros((2, *mask_QD.shape), dtype=np.float32)
    targets_QD[mask_QD] = np.concatenate([sample.targets_D for sample in samples])
    labels_QD[mask_QD] = np.concatenate([sample.labels_D for sample in samples])
    return Targets(*map(torch.from_numpy, (targets_QD, labels_QD, mask_QD)))


def cut_pieces(lengths_P: np.ndarray, largest_tokens: int) -> list[np.ndarray]:
    """Cuts pairs into pieces of nearly equal tokens, none above `largest_tokens` or its one pair.

    There are 8 pieces or a multiple of it, so that 2, 4 and 8 ranks have equal shares, as far as
    there are pairs.
    """
    largest_tokens = max(largest_tokens, int(lengths_P.max()))
    for count in range(RANKS, len(lengths_P), RANKS):
        pieces = share_out(lengths_P, count)
        if max(int(lengths_P[rows].sum()) for rows in pieces) <= largest_tokens:
            return pieces
    return [np.array([row]) for row in range(len(lengths_P))]


def deal(
    lengths: Sequence[np.ndarray],
    ranks: int,
    cut: Callable[[np.ndarray], list[np.ndarray]],
    *,
    merged: bool = False,
) -> list[dict[int, np.ndarray]]:
    """Deals the pieces of some micro-batches, given the tokens of their pairs, to ranks by cost.

    `cut` gives the rows of a micro-batch's pieces. Each rank gets the rows of its pieces by number,
    in one piece if they are `merged`. Rows count the pairs of all these micro-batches. Pieces and
    numbers do not depend on the number of ranks.
    """
    tokens_P = np.concatenate(lengths)
    if merged and ranks == 1:
        return [{0: np.arange(len(tokens_P))}]
    starts = np.cumsum([0, *map(len, lengths[:-1])]).tolist()
    pieces = [
        (start + number, start + rows)
        for start, lengths_P in zip(starts, lengths, strict=True)
        for number, rows in enumerate(cut(lengths_P))
    ]
    shares = share_out(np.array([tokens_P[rows].sum() for _, rows in pieces]), ranks)
    dealt = [dict(pieces[place] for place in share) for share in shares]
    if merged:
        dealt = [{min(each): np.concatenate([*each.values()])} if each else {} for each in dealt]
    return dealt


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

    @property
    def drops_by_pair(self) -> bool:
        """True if each pair draws its own dropout, whatever else is in its pass."""
        return self.packed and self.device.type == "cpu"

    @property
    def merges_pieces(self) -> bool:
        """True if a rank computes its pieces together, which is faster. On a GPU, dropout's draws
        then depend on the number of ranks, unless the training is to be deterministic."""
        is_free = self.device.type == "cuda" and not self.settings.deterministic
        return not self.settings.dropout or self.drops_by_pair or is_free

    def cut(self, lengths_P: np.ndarray) -> list[np.ndarray]:
        """Cuts a micro-batch into pieces, given the tokens of its pairs.

        Padded passes on a CPU with dropout stay whole: ranks share them less evenly, but smaller
        ones would make one rank slower, by 12% for 50 pairs of MiniLM-L6.
        """
        if self.merges_pieces or self.device.type == "cuda":
            return cut_pieces(lengths_P, self.forward_tokens)
        return list(batches(lengths_P, np.argsort(-lengths_P, kind="stable"), self.forward_tokens))

    def backward_passes(self, lengths_P: np.ndarray, pieces: Sequence[np.ndarray]) -> int:
        """Counts the backward passes over some pieces: above 1 above the budget."""
        return len(self._plan(lengths_P, pieces)[1])

    def assemble(
        self,
        samples: Sequence[Sample],
        pieces: Mapping[int, np.ndarray] | None = None,
        first: int = 0,
    ) -> Share:
        """Encodes the pairs of some pieces, given as rows by number; by default all pairs.

        `first` pairs of the global batch come before these samples.
        """
        targets = pad_targets(samples)
        names = [(sample.query_id, doc_id) for sample in samples for doc_id in sample.doc_ids]
        pieces = {0: np.arange(len(names))} if pieces is None else pieces
        own = [row for rows in pieces.values() for row in rows.tolist()]
        texts = [(self.queries[names[row][0]], self.documents[names[row][1]]) for row in own]
        encoded = self.encoder.encode_all(texts, *self.side_tokens) if own else []
        pairs = dict(zip(own, encoded, strict=True))
        lengths_P = np.zeros(len(names), dtype=np.int64)
        lengths_P[own] = [len(pair.input_ids) for pair in encoded]
        passes, groups = self._plan(lengths_P, list(pieces.values()))
        forwards: list[Inputs] = []
        for _, _, rows in passes:
            chosen = [pairs[row] for row in rows.tolist()]
            numbers = (first + rows).tolist()
            forwards.append(
                pack(chosen)._replace(numbers=numbers)
                if self.packed
                else self.encoder.collate(chosen)
            )
        order_P = np.concatenate([np.arange(0), *(rows for _, _, rows in passes)])
        starts = list(pieces)
        return Share(
            forwards,
            [
                (0, 0) if self.drops_by_pair else (first + starts[piece], number)
                for piece, number, _ in passes
            ],
            groups,
            targets.mask_QD.flatten().nonzero()[:, 0][torch.from_numpy(order_P)],
            targets,
            tokens=int(lengths_P.sum()),
            slots=sum(map(slots, forwards)),
        )

    def _plan(
        self, lengths_P: np.ndarray, pieces: Sequence[np.ndarray]
    ) -> tuple[list[tuple[int, int, np.ndarray]], list[slice]]:
        """Each forward pass (piece, number in it, rows with the longest first), and the forward
        passes of each backward pass: all of them in one if the pieces fit the budget."""
        cut = batches_without_padding if self.packed else batches
        passes = [
            (piece, number, chosen)
            for piece, rows in enumerate(pieces)
            for number, chosen in enumerate(
                cut(
                    lengths_P,
                    rows[np.argsort(-lengths_P[rows], kind="stable")],
                    self.forward_tokens,
                )
            )
        ]
        if sum(int(lengths_P[rows].sum()) for rows in pieces) <= self.micro_batch_tokens:
            return passes, [slice(0, len(passes))] if passes else []
        used = [
            int(lengths_P[rows].sum() if self.packed else len(rows) * lengths_P[rows].max())
            for _, _, rows in passes
        ]
        return passes, group(used, self.micro_batch_tokens)

    def lengths(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Tokens of every sample's pairs without padding, the cost of computing them."""
        sizes = [len(sample.doc_ids) for sample in samples]
        query = np.repeat([len(self.queries[sample.query_id]) for sample in samples], sizes)
        documents = [len(self.documents[doc_id]) for sample in samples for doc_id in sample.doc_ids]
        lengths_P = self.encoder.lengths(query, np.array(documents), *self.side_tokens)
        return np.split(lengths_P, np.cumsum(sizes)[:-1])


def group(sizes: Sequence[int], budget: int) -> list[slice]:
    """Groups consecutive sizes up to a budget, at least one in each group.

    `group([50, 40, 30, 90], 100)` gives [slice(0, 2), slice(2, 3), slice(3, 4)].
    """
    groups, start, used = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and used + size > budget:
            groups.append(slice(start, place))
            start, used = place, 0
        used += size
    return [*groups, slice(start, len(sizes))]

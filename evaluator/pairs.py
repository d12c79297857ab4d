"""Pairs of query and document, joined from token ids exactly as the tokenizer joins texts.

The template (BERT's `[CLS] q [SEP] d [SEP]`, RoBERTa's doubled separator, ...) and the segment
ids come from the tokenizer's own encoding of one probe pair, so no family is named here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from xsweep.errors import ConfigError

NO_LIMIT = 2**31
"""Tokenizers without a longest input declare 10**30, which no array can hold."""

PROBES = [
    ("where", "here"),
    ("where is the river that flows north", "the Nile flows north to the sea"),
]
"""Pairs of unequal length, on which every model's passes are compared when it is loaded."""


class PairIds(NamedTuple):
    """One encoded pair: int64[tokens], and segment ids if the model takes them."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None


class PairEncoder:
    """Joins token ids of a query and a document, each cut separately, into a model's input."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ConfigError if the tokenizer does more than put tokens around the texts."""
        probe = tokenizer("a", "b", return_token_type_ids=True)
        sides = np.array([-1 if side is None else side for side in probe.sequence_ids()])
        ids = np.array(probe["input_ids"], dtype=np.int64)
        segments = np.array(probe["token_type_ids"], dtype=np.int64)
        query, document = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
        if not len(query) or not len(document) or query[-1] > document[0]:
            raise ConfigError("this tokenizer joins query and document in an unsupported way")
        parts = [slice(query[0]), slice(query[-1] + 1, document[0]), slice(document[-1] + 1, None)]
        self._before, self._between, self._after = (ids[part] for part in parts)
        # One segment for each special token and one for each side, which is as long as it is.
        kept = [*range(query[0] + 1), *range(query[-1] + 1, document[0] + 1)]
        self._segments = segments[[*kept, *range(document[-1] + 1, len(ids))]]
        self._side_places = [query[0], len(kept) - 1]
        self.has_segments = "token_type_ids" in tokenizer.model_input_names
        self.overhead_tokens = sum(len(ids[part]) for part in parts)
        self.max_tokens = min(tokenizer.model_max_length, NO_LIMIT)
        """The model's longest input; the document is cut further if a pair would exceed it."""
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.pad_segment: int = tokenizer.pad_token_type_id
        cut = [tokenizer(list(pair), add_special_tokens=False)["input_ids"] for pair in PROBES]
        self.probes = [self.encode(np.array(q), np.array(d), 8, 16) for q, d in cut]

    def lengths(
        self,
        query_lengths: np.ndarray,
        document_lengths: np.ndarray,
        query_tokens: int,
        document_tokens: int,
    ) -> np.ndarray:
        """Tokens of each encoded pair, given the lengths of its uncut sides."""
        room = self.max_tokens - self.overhead_tokens
        query = np.minimum(query_lengths, min(query_tokens, room))
        document = np.minimum(document_lengths, np.minimum(document_tokens, room - query))
        return self.overhead_tokens + query + document

    def lengths_of(
        self,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        query_tokens: int,
        document_tokens: int,
    ) -> np.ndarray:
        """Tokens of each encoded pair, int64."""
        sides = np.array([[len(side) for side in pair] for pair in pairs], dtype=np.int64)
        queries, documents = sides.reshape(-1, 2).T
        return self.lengths(queries, documents, query_tokens, document_tokens)

    def encode(
        self,
        query_ids: np.ndarray,
        document_ids: np.ndarray,
        query_tokens: int,
        document_tokens: int,
    ) -> PairIds:
        """One pair; the first `query_tokens` and `document_tokens` of its sides are kept."""
        return self.encode_all([(query_ids, document_ids)], query_tokens, document_tokens)[0]

    def encode_all(
        self,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        query_tokens: int,
        document_tokens: int,
    ) -> list[PairIds]:
        """`encode` of at least one pair by one call, which takes 1.3 instead of 9 µs a pair."""
        room = self.max_tokens - self.overhead_tokens
        query_tokens = min(query_tokens, room)
        parts: list[np.ndarray] = []
        for query_ids, document_ids in pairs:
            query = query_ids[:query_tokens]
            document = document_ids[: min(document_tokens, room - len(query))]
            parts += (self._before, query, self._between, document, self._after)
        sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        ids_T = np.concatenate(parts, dtype=np.int64)
        ends = np.cumsum(sizes)[4::5].tolist()
        slices = [slice(*both) for both in pairwise((0, *ends))]
        if not self.has_segments:
            return [PairIds(ids_T[part], None) for part in slices]
        counts = np.ones((len(pairs), len(self._segments)), dtype=np.int64)
        counts[:, self._side_places] = sizes.reshape(-1, 5)[:, 1::2]
        segments_T = np.repeat(np.tile(self._segments, len(pairs)), counts.ravel())
        return [PairIds(ids_T[part], segments_T[part]) for part in slices]

    def collate(self, pairs: Sequence[PairIds]) -> dict[str, torch.Tensor]:
        """Model inputs of pairs, int64[pairs, longest], padded at the end."""
        shape = len(pairs), max(len(pair.input_ids) for pair in pairs)
        batch = {
            "input_ids": np.full(shape, self.pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        if self.has_segments:
            batch["token_type_ids"] = np.full(shape, self.pad_segment, dtype=np.int64)
        for row, pair in enumerate(pairs):
            length = len(pair.input_ids)
            batch["input_ids"][row, :length] = pair.input_ids
            batch["attention_mask"][row, :length] = 1
            if pair.token_type_ids is not None:
                batch["token_type_ids"][row, :length] = pair.token_type_ids
        return {name: torch.from_numpy(array) for name, array in batch.items()}

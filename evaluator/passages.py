"""Windows of long documents, so that a model reads more of them than its longest input.

The score of a document is that of its best passage (MaxP: Dai and Callan 2019,
doi:10.1145/3331184.3331303). One window, the first tokens, is the usual way.
"""

from collections.abc import Sequence

import numpy as np

from evaluator.scoring import TokenPair


def windows(
    document_ids: np.ndarray, window_tokens: int, overlap_tokens: int, most: int
) -> list[np.ndarray]:
    """The first `most` windows of a document; the last one ends where the document ends.

    Ten tokens in windows of 4 that overlap by 1 are 0-3, 3-6, 6-9.
    """
    step = window_tokens - overlap_tokens
    starts = range(0, max(1, len(document_ids) - overlap_tokens), step)
    return [document_ids[start : start + window_tokens] for start in starts[:most]]


def split(
    pairs: Sequence[TokenPair], window_tokens: int, overlap_tokens: int, most: int
) -> tuple[list[TokenPair], np.ndarray]:
    """Pairs of query and window, and int64[windows]: the pair that each one belongs to."""
    parts = [
        (query, window, row)
        for row, (query, document) in enumerate(pairs)
        for window in windows(document, window_tokens, overlap_tokens, most)
    ]
    owners = np.array([row for _, _, row in parts], dtype=np.int64)
    return [(query, window) for query, window, _ in parts], owners


def best(scores: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """float32[count]: the best score of each pair's windows."""
    highest = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(highest, owners, scores)
    return highest

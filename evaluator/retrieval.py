"""Exact retrieval with vectors: every document is scored for every query, a chunk at a time.

Only the best documents so far are kept, so memory does not grow with the collection.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np

from evaluator.collections import Collection
from evaluator.trec import Run
from xsweep import DataError

TEXTS_PER_CHUNK = 4096

ScoreTexts = Callable[[Sequence[str]], np.ndarray]
"""Scores float32[texts, queries] of some documents for all queries."""


def retrieve(
    collection: Collection,
    queries: Mapping[str, str],
    score: ScoreTexts,
    depth: int,
    *,
    positive_only: bool = False,
    report: Callable[..., object] | None = None,
) -> tuple[Run, int]:
    """The `depth` best documents of each query, and the number of documents.

    Ties break by document id descending, at the cut too. With `positive_only` documents that score
    0 or less are left out. The collection is read twice: for its ids, then for its texts.
    """
    doc_ids = [doc_id for doc_id, _ in collection.documents()]
    if not doc_ids:
        raise DataError(f"collection {collection.name!r} has no documents to retrieve")
    id_rank = rank_ids(doc_ids)
    kept = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    texts = (text for _, text in collection.documents())
    for start in range(0, len(doc_ids), TEXTS_PER_CHUNK):
        chunk = list(islice(texts, TEXTS_PER_CHUNK))
        scores_QC = np.ascontiguousarray(score(chunk).T)
        for place, scores_C in enumerate(scores_QC):
            rows, scores = kept[place]
            new = best_rows(
                scores_C, id_rank[start : start + len(chunk)], depth, positive_only=positive_only
            )
            rows = np.concatenate((rows, start + new))
            scores = np.concatenate((scores, scores_C[new]))
            order = best_rows(scores, id_rank[rows], depth, positive_only=positive_only)
            kept[place] = rows[order], scores[order]
        if report:
            report(start + len(chunk), len(doc_ids))
    run = {
        query_id: {doc_ids[row]: score for row, score in zip(rows, scores.tolist(), strict=True)}
        for query_id, (rows, scores) in zip(queries, kept, strict=True)
        if len(rows)
    }
    return run, len(doc_ids)


def rank_ids(doc_ids: Sequence[str]) -> np.ndarray:
    """int64[documents]: each id's place among the sorted ids, so that ties compare numbers."""
    id_rank = np.empty(len(doc_ids), dtype=np.int64)
    id_rank[np.argsort(np.array(doc_ids, dtype=object))] = np.arange(len(doc_ids))
    return id_rank


def best_rows(
    scores: np.ndarray, id_rank: np.ndarray, depth: int, *, positive_only: bool
) -> np.ndarray:
    """Rows of the `depth` best scores, best first, ties by id descending."""
    rows = np.arange(len(scores))
    if depth < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    if positive_only:
        rows = rows[scores[rows] > 0]
    return rows[np.lexsort((-id_rank[rows], -scores[rows]))][:depth]

"""Samples drawn from one ranked list for each query: labels, scores or a ranking.

A list is looked at when it is drawn from, so that memory holds none of them.
"""

from collections.abc import Container, Mapping
from typing import NamedTuple

import numpy as np

from evaluator.trec import Qrels
from trainer.teacher_specs import TeacherSpec
from trainer.teachers import Sample
from xsweep import DataError


class _Pool(NamedTuple):
    """What one query offers: documents with targets, and where its positives and others are."""

    query_id: str
    doc_ids: list[str]
    targets_N: np.ndarray
    labels_N: np.ndarray
    positives: np.ndarray
    others: np.ndarray


class ListTeacher:
    """Draws samples from ranked lists; what a sample holds depends on the specification.

    With `negatives` = k: a random positive and k random non-relevant documents of the list (all
    of them where there are fewer). With `list_size` = n: n random documents of the list, or the
    whole list where that is shorter. Neither: the whole list.
    """

    uses_chance = True

    def __init__(
        self,
        spec: TeacherSpec,
        lists: Mapping[str, Mapping[str, float]],
        queries: Mapping[str, str],
        qrels: Qrels,
        documents: Container[str],
    ) -> None:
        """Raises DataError for a document without tokens and where no query is left to train on."""
        self.spec, self.lists, self.qrels = spec, lists, qrels
        self.counts = {"used": 0, "no_text": 0, "no_positive": 0, "too_short": 0}
        self.queries: dict[str, str] = {}
        unknown: dict[str, str] = {}
        for query_id in sorted(lists):
            if query_id not in queries:
                self.counts["no_text"] += 1
                continue
            pool = self._pool(query_id)
            if spec.negatives and not len(pool.positives):
                self.counts["no_positive"] += 1
            elif len(pool.others) < 1 if spec.negatives else len(pool.doc_ids) < 2:
                self.counts["too_short"] += 1
            else:
                self.queries[query_id] = queries[query_id]
                for doc_id in pool.doc_ids:
                    if doc_id not in documents:
                        unknown.setdefault(doc_id, query_id)
        self.counts["used"] = len(self.queries)
        self._units = list(self.queries)
        if not self._units:
            raise DataError(
                f"the teacher leaves no query to train on: {self.counts}; check that its lists, "
                "the queries and the qrels belong together, or set add_positives"
            )
        if unknown:
            (doc_id, query_id), *others = unknown.items()
            raise DataError(
                f"the teacher's document {doc_id!r} (query {query_id!r}) is not in the token "
                f"store, nor are {len(others)} others: they must come from the same collection"
            )

    def _pool(self, query_id: str) -> _Pool:
        scores, grades = self.lists[query_id], self.qrels.get(query_id, {})
        relevant = {doc for doc, grade in grades.items() if grade >= self.spec.relevant_grade}
        listed = list(scores)
        doc_ids = listed[: self.spec.depth]
        if self.spec.add_positives:
            # A teacher's signal has no target for a document that it never saw; a label needs none.
            known = relevant if self.spec.signal == "labels" else relevant.intersection(scores)
            doc_ids = doc_ids + sorted(known.difference(doc_ids))
        positive_N = np.array([doc_id in relevant for doc_id in doc_ids], dtype=bool)
        labels_N = positive_N.astype(np.float32)
        if self.spec.signal == "labels":
            targets_N = labels_N
        elif self.spec.signal == "scores":
            targets_N = np.array([scores[doc_id] for doc_id in doc_ids], dtype=np.float32)
        else:
            rank = {doc_id: place for place, doc_id in enumerate(listed, 1)}
            targets_N = np.array([-rank[doc_id] for doc_id in doc_ids], dtype=np.float32)
        positives, others = np.flatnonzero(positive_N), np.flatnonzero(~positive_N)
        return _Pool(query_id, doc_ids, targets_N, labels_N, positives, others)

    def __len__(self) -> int:
        return len(self._units)

    def draw(self, unit: int, generator: np.random.Generator) -> Sample:
        """A sample of the unit-th query."""
        pool, spec = self._pool(self._units[unit]), self.spec
        if spec.negatives:
            k = min(spec.negatives, len(pool.others))
            positive = generator.choice(pool.positives, 1)
            chosen = np.concatenate((positive, generator.choice(pool.others, k, replace=False)))
        elif spec.list_size and spec.list_size < len(pool.doc_ids):
            chosen = np.sort(generator.choice(len(pool.doc_ids), spec.list_size, replace=False))
        else:
            chosen = np.arange(len(pool.doc_ids))
        doc_ids = tuple(pool.doc_ids[place] for place in chosen)
        return Sample(pool.query_id, doc_ids, pool.targets_N[chosen], pool.labels_N[chosen])

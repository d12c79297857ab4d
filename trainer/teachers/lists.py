"""Ranked lists of many queries on disk, and samples drawn from them: labels, scores or a ranking.

A list is a block of a temporary file; memory holds where each query's block begins, and one list
while it is made or drawn from. A query whose lines do not stand together is put together at the
end.
"""

import os
import struct
import tempfile
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xsweep.errors import DataError
from xsweep.evaluator.data.trec import Qrels, duplicate, scores_from_order, sort_docs
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.formats import FORMATS, Entry
from xsweep.trainer.teachers.teacher import Sample

_HEAD = struct.Struct("<II")


def read_lists(spec: TeacherSpec, inputs: Mapping[str, Path]) -> "RankedLists":
    """Each query's documents, best first, with their scores."""
    file = FORMATS[spec.source.type].read(spec.source, spec.signal, inputs)
    return RankedLists(file.path, file.entries, by_rank=file.by_rank)


class _Part(NamedTuple):
    """Lines of one query as they stand in the file."""

    doc_ids: list[str]
    values_N: np.ndarray
    """float64"""
    lines_N: np.ndarray
    """int64"""


class RankedLists(Mapping[str, dict[str, float]]):
    """Query id to its documents with scores, best first by trec_eval's rule.

    With `by_rank` the values are negated ranks, and a list's n documents carry the scores n to 1.
    """

    def __init__(self, path: Path, entries: Iterable[Entry], *, by_rank: bool = False) -> None:
        """Reads the entries of a file once.

        Raises DataError for a document, or a rank where they count, that a query has twice.
        """
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the lists keep it open
        self._path, self._size, self._by_rank = path, 0, by_rank
        self._starts: dict[str, int] = {}
        scattered: dict[str, array[int]] = {}
        for query_id, part in _together(entries):
            start = self._write(self._checked(query_id, part))
            if query_id in self._starts:
                scattered.setdefault(query_id, array("Q")).append(start)
            else:
                self._starts[query_id] = start
        self._file.flush()
        for query_id, more in scattered.items():
            parts = [self._read(start) for start in (self._starts[query_id], *more)]
            self._starts[query_id] = self._write(self._checked(query_id, _joined(parts)))
            self._file.flush()

    def __getitem__(self, query_id: str) -> dict[str, float]:
        part = self._read(self._starts[query_id])
        ranked = list(zip(part.doc_ids, part.values_N.tolist(), strict=True))
        return scores_from_order(ranked) if self._by_rank else dict(ranked)

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def _checked(self, query_id: str, part: _Part) -> _Part:
        """The lines best first; raises where a document, or a rank, occurs twice."""
        docs: dict[str, float] = {}
        ranks: set[float] = set()
        lines = {}
        order = np.argsort(part.lines_N, kind="stable").tolist()
        for place in order:
            doc_id, value, line = part.doc_ids[place], part.values_N[place], part.lines_N[place]
            if doc_id in docs or (self._by_rank and value in ranks):
                rank = None if doc_id in docs else -float(value)
                raise duplicate(self._path, int(line), query_id, doc_id, rank)
            ranks.add(value)
            docs[doc_id], lines[doc_id] = float(value), int(line)
        best = sort_docs(docs)
        return _Part(
            [doc_id for doc_id, _ in best],
            np.array([value for _, value in best], dtype=np.float64),
            np.array([lines[doc_id] for doc_id, _ in best], dtype=np.int64),
        )

    def _write(self, part: _Part) -> int:
        names = "\n".join(part.doc_ids).encode()
        block = b"".join(
            (
                _HEAD.pack(len(part.doc_ids), len(names)),
                part.values_N.tobytes(),
                part.lines_N.tobytes(),
                names,
            )
        )
        start, self._size = self._size, self._size + len(block)
        self._file.write(block)
        return start

    def _read(self, start: int) -> _Part:
        # Reading leaves the pages to the system's cache; mapped, they would count as ours.
        file = self._file.fileno()
        count, size = _HEAD.unpack(os.pread(file, _HEAD.size, start))
        block = os.pread(file, 16 * count + size, start + _HEAD.size)
        values_N = np.frombuffer(block, dtype=np.float64, count=count)
        lines_N = np.frombuffer(block, dtype=np.int64, count=count, offset=8 * count)
        return _Part(block[16 * count :].decode().split("\n"), values_N, lines_N)


def _together(entries: Iterable[Entry]) -> Iterator[tuple[str, _Part]]:
    """Runs of lines of one query."""
    doc_ids: list[str] = []
    values, lines = array("d"), array("q")
    current = None
    for line, query_id, doc_id, value in entries:
        if query_id != current:
            if current is not None:
                yield current, _Part(doc_ids, np.array(values), np.array(lines, dtype=np.int64))
            current, doc_ids, values, lines = query_id, [], array("d"), array("q")
        doc_ids.append(doc_id)
        values.append(value)
        lines.append(line)
    if current is not None:
        yield current, _Part(doc_ids, np.array(values), np.array(lines, dtype=np.int64))


def _joined(parts: list[_Part]) -> _Part:
    return _Part(
        [doc_id for part in parts for doc_id in part.doc_ids],
        np.concatenate([part.values_N for part in parts]),
        np.concatenate([part.lines_N for part in parts]),
    )


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

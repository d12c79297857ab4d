"""Ranked lists of many queries on disk, and samples of labels, scores or ranks drawn from them.

A list is a block of a temporary file; memory holds the start of each block, and one list while it
is written or drawn from. If the lines of a query are scattered over the file, its blocks are merged
at the end.
"""

import os
import struct
import tempfile
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from xsweep.errors import DataError
from xsweep.evaluator.data.trec import Qrels, duplicate, sort_docs
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers import Sample
from xsweep.trainer.teachers.formats import Entry, ListFile, MeanSource

_HEAD = struct.Struct("<II")


def read_lists(spec: TeacherSpec, inputs: Mapping[str, Path]) -> "RankedLists":
    """Each query's documents, best first, with their scores."""
    if isinstance(spec.source, MeanSource):
        parts = [_ranked_lists(part.read("ranking", inputs)) for part in spec.source.parts]
        return RankedLists(parts[0].path, mean_ranks(parts))
    return _ranked_lists(spec.source.read(spec.signal, inputs))


def _ranked_lists(file: ListFile) -> "RankedLists":
    lists = RankedLists(file.path, file.entries, by_rank=file.by_rank)
    lists.labels = file.labels or {}
    return lists


def mean_ranks(parts: Sequence["RankedLists"]) -> Iterator[Entry]:
    """Entries by the negated mean of their ranks among the documents that all parts list.

    a, b, c and c, a, b have the mean ranks 1.5, 2.5 and 2: a, c, b.
    """
    for line, query_id in enumerate(parts[0], 1):
        if not all(query_id in part for part in parts):
            continue
        ranked = [part.ranked(query_id)[0] for part in parts]
        shared = set(ranked[0]).intersection(*ranked)
        orders = [[doc_id for doc_id in docs if doc_id in shared] for docs in ranked]
        ranks = [dict(zip(docs, range(1, len(docs) + 1), strict=True)) for docs in orders]
        for doc_id in orders[0]:
            yield Entry(line, query_id, doc_id, -fmean(each[doc_id] for each in ranks))


class _Block(NamedTuple):
    """Documents of one query, with their values and their line numbers in the file."""

    doc_ids: Sequence[str]
    values: Sequence[float]
    lines: Sequence[int]


class RankedLists(Mapping[str, dict[str, float]]):
    """Query id to its documents with scores, best first by trec_eval's rule.

    With `by_rank` the values are negated ranks, and a list's n documents have the scores n to 1.
    """

    def __init__(self, path: Path, entries: Iterable[Entry], *, by_rank: bool = False) -> None:
        """Reads the entries of a file once.

        Raises DataError for a document, or a rank with `by_rank`, that occurs twice for a query.
        """
        self.labels: Qrels = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the lists
        self.path, self._size, self._by_rank = path, 0, by_rank
        self._starts: dict[str, int] = {}
        scattered: dict[str, array[int]] = {}
        for query_id, group in groupby(entries, attrgetter("query_id")):
            lines, _, doc_ids, values = zip(*group, strict=True)
            start = self._write(self._sorted(query_id, _Block(doc_ids, values, lines)))
            if query_id in self._starts:
                scattered.setdefault(query_id, array("Q")).append(start)
            else:
                self._starts[query_id] = start
        self._file.flush()
        for query_id, starts in scattered.items():
            blocks = map(self._read, (self._starts[query_id], *starts))
            merged = _Block(*map(list, map(chain.from_iterable, zip(*blocks, strict=True))))
            self._starts[query_id] = self._write(self._sorted(query_id, merged))
            self._file.flush()

    def __getitem__(self, query_id: str) -> dict[str, float]:
        doc_ids, scores_D = self.ranked(query_id)
        return dict(zip(doc_ids, scores_D.tolist(), strict=True))

    def ranked(self, query_id: str) -> tuple[list[str], np.ndarray]:
        """The documents, best first, and their scores, float64, without a dictionary of them."""
        count, content = self._content(self._starts[query_id])
        doc_ids = content[16 * count :].decode().split("\n")
        if self._by_rank:
            return doc_ids, np.arange(count, 0, -1, dtype=np.float64)
        return doc_ids, np.frombuffer(content, "<f8", count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def _sorted(self, query_id: str, block: _Block) -> _Block:
        """The block best first. Raises DataError if a document, or a rank, occurs twice."""
        values: dict[str, float] = {}
        lines: dict[str, int] = {}
        ranks: set[float] = set()
        for doc_id, value, line in zip(*block, strict=True):
            if doc_id in values or (self._by_rank and value in ranks):
                rank = None if doc_id in values else -value
                raise duplicate(self.path, line, query_id, doc_id, rank)
            ranks.add(value)
            values[doc_id], lines[doc_id] = value, line
        best = dict(sort_docs(values))
        return _Block(list(best), list(best.values()), [lines[doc_id] for doc_id in best])

    def _write(self, block: _Block) -> int:
        """Appends a block and returns its start in bytes."""
        count, names = len(block.doc_ids), "\n".join(block.doc_ids).encode()
        numbers = struct.pack(f"<{count}d{count}q", *block.values, *block.lines)
        start = self._size
        self._size += self._file.write(_HEAD.pack(count, len(names)) + numbers + names)
        return start

    def _read(self, start: int) -> _Block:
        count, content = self._content(start)
        numbers = struct.unpack_from(f"<{count}d{count}q", content)
        names = content[16 * count :].decode().split("\n")
        return _Block(names, numbers[:count], numbers[count:])

    def _content(self, start: int) -> tuple[int, bytes]:
        """The number of a block's documents; their values, lines and names."""
        # The pages that pread reads count as the system's cache; mapped, they would count as ours.
        file = self._file.fileno()
        count, size = _HEAD.unpack(os.pread(file, _HEAD.size, start))
        return count, os.pread(file, 16 * count + size, start + _HEAD.size)


class ListTeacher:
    """Draws samples from ranked lists as the specification says.

    With `negatives` = k: a random positive and k random non-relevant documents of the list (all
    of them if there are fewer). With `list_size` = n: n random documents of the list, or the whole
    list if it is shorter. Neither: the whole list.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        lists: Mapping[str, Mapping[str, float]],
        queries: Mapping[str, Any],
        qrels: Qrels,
        documents: Container[str],
        *,
        drop_identical: bool = False,
    ) -> None:
        """With `drop_identical`, a document with its query's id is in no sample.

        `counts` has `tied`, the lists in use whose scores are all equal. Raises DataError for a
        document without tokens, if no query remains to train on, or if the teacher's scores tie in
        every list.
        """
        self.spec, self.lists, self.qrels = spec, lists, qrels
        self._drop_identical = drop_identical
        self.uses_chance = bool(spec.negatives or spec.list_size)
        self.counts = {"used": 0, "no_text": 0, "no_positive": 0, "too_short": 0, "tied": 0}
        self.queries: dict[str, Any] = {}
        unknown: dict[str, str] = {}
        for query_id in sorted(lists):
            if query_id not in queries:
                self.counts["no_text"] += 1
                continue
            whole = self._whole(query_id)
            positives, size = whole.labels_D.sum(), len(whole.doc_ids)
            if spec.negatives and not positives:
                self.counts["no_positive"] += 1
            elif positives == size if spec.negatives else size < 2:
                self.counts["too_short"] += 1
            else:
                self.queries[query_id] = queries[query_id]
                self.counts["tied"] += bool(np.ptp(self._ranked(query_id)[1]) == 0)
                for doc_id in whole.doc_ids:
                    if doc_id not in documents:
                        unknown.setdefault(doc_id, query_id)
        self.counts["used"] = len(self.queries)
        self._units = list(self.queries)
        if not self._units:
            raise DataError(
                f"the teacher has no query to train on: {self.counts}; check that its lists, "
                "the queries and the qrels belong together, or set add_positives"
            )
        if spec.signal != "labels" and self.counts["tied"] == len(self.queries):
            raise DataError(
                f"the teacher's scores tie in all of its {len(self.queries)} lists: it prefers no "
                "document to another, so there is nothing to learn from it"
            )
        if unknown:
            (doc_id, query_id), *others = unknown.items()
            raise DataError(
                f"the teacher's document {doc_id!r} (query {query_id!r}) is not in the token "
                f"store, nor are {len(others)} others: they must come from the same collection"
            )

    def _ranked(self, query_id: str) -> tuple[list[str], np.ndarray]:
        """The documents of a query's list, best first, and their scores."""
        if isinstance(self.lists, RankedLists):
            doc_ids, scores_D = self.lists.ranked(query_id)
        else:
            doc_ids = list(self.lists[query_id])
            scores_D = np.array(list(self.lists[query_id].values()))
        if self._drop_identical and query_id in doc_ids:
            place = doc_ids.index(query_id)
            return doc_ids[:place] + doc_ids[place + 1 :], np.delete(scores_D, place)
        return doc_ids, scores_D

    def _whole(self, query_id: str) -> Sample:
        """A sample of all documents of a query."""
        (listed, scores_D), grades = self._ranked(query_id), self.qrels.get(query_id, {})
        relevant = {doc for doc, grade in grades.items() if grade >= self.spec.relevant_grade}
        if self.spec.top_relevant:
            relevant = set(listed[: self.spec.top_relevant])
        doc_ids, added = listed[: self.spec.depth], list[str]()
        if self.spec.add_positives:
            # Only labels give a target to a document that is not in the teacher's list.
            known = relevant if self.spec.signal == "labels" else relevant.intersection(listed)
            added = sorted(known.difference(doc_ids))
        doc_ids = doc_ids + added
        labels_D = np.fromiter(map(relevant.__contains__, doc_ids), np.float32, len(doc_ids))
        if self.spec.signal == "labels":
            return Sample(query_id, tuple(doc_ids), labels_D, labels_D)
        places = [*range(len(doc_ids) - len(added)), *map(listed.index, added)]
        if self.spec.signal == "scores":
            targets_D = scores_D[places].astype(np.float32)
        else:
            targets_D = -1 - np.array(places, dtype=np.float32)
        return Sample(query_id, tuple(doc_ids), targets_D, labels_D)

    def __len__(self) -> int:
        return len(self._units)

    def draw(self, unit: int, generator: np.random.Generator) -> Sample:
        """Draws a sample of the unit-th query."""
        spec, whole = self.spec, self._whole(self._units[unit])
        if spec.negatives:
            negatives = np.flatnonzero(whole.labels_D == 0)
            k = min(spec.negatives, len(negatives))
            positive = generator.choice(np.flatnonzero(whole.labels_D), 1)
            chosen = np.concatenate((positive, generator.choice(negatives, k, replace=False)))
        elif spec.list_size and spec.list_size < len(whole.doc_ids):
            chosen = np.sort(generator.choice(len(whole.doc_ids), spec.list_size, replace=False))
        else:
            return whole
        doc_ids = tuple(whole.doc_ids[place] for place in chosen)
        return Sample(whole.query_id, doc_ids, whole.targets_D[chosen], whole.labels_D[chosen])

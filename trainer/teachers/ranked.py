"""Ranked lists of many queries in little memory: on disk, any of them read at once.

A list is a block of a temporary file; memory holds where each query's block begins, and one list
while it is made. A query whose lines do not stand together is put together at the end.
"""

import os
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from evaluator.trec import scores_from_order, sort_docs
from xsweep import DataError

_HEAD = struct.Struct("<II")


class Entry(NamedTuple):
    """A line of a file: a document in a query's list."""

    line: int
    query_id: str
    doc_id: str
    value: float
    """Higher is better."""


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

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        refuse_twice: Callable[[Entry, bool], DataError],
        by_rank: bool = False,
    ) -> None:
        """Reads the entries once.

        `refuse_twice(entry, is_rank)` makes the error for a document that occurs twice in a query
        or, where `is_rank`, for a rank that does.
        """
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the lists keep it open
        self._size, self._by_rank, self._refuse_twice = 0, by_rank, refuse_twice
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
                entry = Entry(int(line), query_id, doc_id, float(value))
                raise self._refuse_twice(entry, doc_id not in docs)
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

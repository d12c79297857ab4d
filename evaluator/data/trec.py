"""TREC runs and qrels: read strictly, sorted as trec_eval sorts, written reproducibly.

A run is `{query id: {document id: score}}`, each query's documents best first. Files may be
gzipped; blanks or tabs separate their columns. trec_eval keeps scores as float32, so scores that
differ only beyond that tie; `read_run` rounds to float32 for the same order.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from math import isfinite
from operator import contains
from pathlib import Path
from typing import Literal

from xsweep.errors import DataError
from xsweep.evaluator.data.files import columns_of, decode, read_lines, write_text

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]

_FLOAT32 = struct.Struct("f")
_WHOLE = re.compile(rb"[+-]?[0-9]{1,15}(?:\.0+)?")


def sort_docs(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents best first by trec_eval's rule: score, ties by document id, both descending.

    `{"a": 1.0, "b": 1.0, "c": 2.0}` gives c, b, a.
    """
    return sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)


def read_run(path: Path | str, order: Literal["score", "rank"] = "score") -> Run:
    """The run in a file of lines `query Q0 document rank score tag`.

    `score` is trec_eval's order and ignores the ranks. `rank` uses them alone; the n documents of
    a query then get the scores n, n-1, ..., 1, which keep the order in later sorts.

    Raises DataError with `file:line` for a wrong number of columns, a score that is not a finite
    number, a document or (with order="rank") a rank that occurs twice in a query, text that is
    not UTF-8, an empty and a cut-off file.
    """
    path = Path(path)
    run: Run = {}
    taken_ranks: dict[str, set[float]] = {}
    for number, query_id, doc_id, value in run_lines(path, order):
        docs = run.setdefault(query_id, {})
        if doc_id in docs:
            raise duplicate(path, number, query_id, doc_id)
        if order == "rank":
            ranks = taken_ranks.setdefault(query_id, set())
            if value in ranks:
                raise duplicate(path, number, query_id, rank=-value)
            ranks.add(value)
        docs[doc_id] = value
    as_scores = dict if order == "score" else scores_from_order
    return {query_id: as_scores(sort_docs(docs)) for query_id, docs in run.items()}


def run_lines(
    path: Path, order: Literal["score", "rank"] = "score"
) -> Iterator[tuple[int, str, str, float]]:
    """(line, query id, document id, value) of a run's lines, in file order.

    The value is the score as float32 or, with order="rank", the negated rank. Columns after the tag
    and lines of a comment (`# ...`) are skipped. Raises DataError as `read_run` does, except for
    duplicates.
    """
    column, kind = ("rank", "a whole number") if order == "rank" else ("score", "a finite number")
    place = 3 if order == "rank" else 4
    found = False
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if len(fields) > 6 and line.count(b"\t") == 5:  # an id with a blank
            fields = [field.strip() for field in line.split(b"\t")]
        if not fields or fields[0] == b"#":
            continue
        # words after the tag are accepted, an id with a blank in it is not
        if len(fields) < 6 or (len(fields) > 6 and _whole(fields[3]) is None):
            raise _malformed(path, number, "query Q0 document rank score tag", fields)
        try:
            query_id, doc_id = fields[0].decode(), fields[2].decode()
        except UnicodeDecodeError:
            decode(line.strip(), f"{path}:{number}")
            raise
        value = _whole(fields[place]) if place == 3 else _number(fields[place])
        if value is None:
            wrong = decode(fields[place], f"{path}:{number}")
            raise DataError(f"{path}:{number}: the {column} {wrong!r} is not {kind}")
        found = True
        yield number, query_id, doc_id, -value if place == 3 else value
    if not found:
        raise DataError(f"{path}: the run holds no results")


def duplicate(
    path: Path, line: int, query_id: str, doc_id: str = "", rank: float | None = None
) -> DataError:
    """The error for a document, or a rank, that occurs twice in a query's list."""
    name, remedy = f"document {doc_id!r}", "remove one of the lines"
    if rank is not None:
        name, remedy = f"rank {rank:.0f}", 'correct the ranks or read the run with order "score"'
    return DataError(f"{path}:{line}: {name} occurs twice for query {query_id!r}: {remedy}")


def line_of(path: Path | str, doc_id: str) -> int:
    """The first line of a run that names a document; 0 if none does."""
    wanted = doc_id.encode()
    for number, line in enumerate(read_lines(Path(path)), 1):
        if line.split()[2:3] == [wanted]:
            return number
    return 0


def scores_from_order(ranked: list[tuple[str, float]]) -> dict[str, float]:
    """Replaces the scores of n documents, best first, by n, n-1, ..., 1."""
    return {doc_id: float(len(ranked) - place) for place, (doc_id, _) in enumerate(ranked)}


def write_run(path: Path | str, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a run in trec_eval's order with ranks from 1.

    Nine significant digits keep a float32 exactly.
    """
    with write_text(Path(path)) as write:
        for query_id, scores in run.items():
            for rank, (doc_id, score) in enumerate(sort_docs(scores), 1):
                write(f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}\n")


def read_qrels(path: Path | str) -> Qrels:
    """Relevance grades {query: {document: grade}} in TREC's or BEIR's format.

    TREC: `query 0 document grade`. BEIR: `query document grade`. A first line of column names and
    comments (`# ...`) are skipped. Tabs separate the columns of a line that has any, else ASCII
    blanks. Raises DataError with `file:line` for a wrong number of columns, a grade that is not a
    whole number (`1.0` is one), one document with two grades, text that is not UTF-8, an empty and
    a cut-off file.
    """
    path = Path(path)
    qrels: Qrels = {}
    columns = 0
    for number, line in enumerate(read_lines(path), 1):
        fields = columns_of(decode(line, f"{path}:{number}"))
        if not any(fields) or fields[0] == "#":
            continue
        if not columns:
            columns = len(fields)
            names = [field.lower() for field in (fields[0], *fields[-2:])]
            if columns in (3, 4) and all(map(contains, _HEADERS, names)):
                continue
        if len(fields) != columns or columns not in (3, 4):
            raise _malformed(path, number, "query 0 document grade", fields)
        query_id, doc_id, given = fields[0], fields[-2], fields[-1]
        grade = _whole(given.encode())
        if grade is None or abs(grade) >= 2**31:
            raise DataError(
                f"{path}:{number}: the grade {given!r} is not a whole number below 2^31"
            )
        grades = qrels.setdefault(query_id, {})
        if grades.setdefault(doc_id, int(grade)) != int(grade):
            raise DataError(
                f"{path}:{number}: document {doc_id!r} has two grades for query {query_id!r}: "
                f"{grades[doc_id]} and {given}"
            )
    if not qrels:
        raise DataError(f"{path}: the qrels hold no judgements")
    return qrels


def write_qrels(path: Path | str, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Writes lines `query 0 document grade` in the order given."""
    with write_text(Path(path)) as write:
        for query_id, grades in qrels.items():
            for doc_id, grade in grades.items():
                tab = "\t" if " " in query_id or " " in doc_id else " "
                write(tab.join((query_id, "0", doc_id, f"{grade}\n")))


_HEADERS = (
    {"query-id", "query_id", "queryid", "qid", "query", "topic", "topic_id"},
    {"corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "did", "pid", "docno", "document"},
    {"score", "grade", "rel", "relevance", "label", "judgment", "judgement"},
)
"""Names of a header's columns: query, document and grade."""


def _whole(field: bytes) -> float | None:
    """The whole number in a field such as `3`, `-1` or `1.0`; exact up to 2^53."""
    return float(field) if _WHOLE.fullmatch(field) else None


def _number(field: bytes) -> float | None:
    """The finite float32 in a field; float() alone would take `nan`, `inf` and `1_0`."""
    try:
        (value,) = _FLOAT32.unpack(_FLOAT32.pack(float(field)))
    except (ValueError, OverflowError):
        return None
    return value if isfinite(value) and b"_" not in field else None


def _malformed(path: Path, number: int, expected: str, fields: list) -> DataError:
    return DataError(
        f"{path}:{number}: expected {len(expected.split())} columns ({expected}), "
        f"found {len(fields)}"
    )

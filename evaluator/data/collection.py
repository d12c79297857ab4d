"""Collections: documents, queries and qrels, whatever they come from.

Training files that carry their texts: one query with its passages on each line.

`{"query": text, "passages": [{"text": text, "label": 1, "teacher_score": 9.5}, …]}`; label 1
marks what is relevant, a score is needed where one learns from scores.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xsweep.errors import DataError
from xsweep.evaluator.data import files
from xsweep.evaluator.data.readers import read_markup
from xsweep.evaluator.data.trec import Qrels, read_qrels
from xsweep.evaluator.specs import (
    JsonlSpec,
)

Texts = Iterator[tuple[str, str]]


Lookup = Callable[[set[str]], dict[str, str]]


@dataclass(frozen=True)
class Collection:
    """Documents, queries and qrels of one test or training set."""

    name: str
    documents: Callable[[], Texts]
    """Gives a fresh iterator over (id, text), the text being title and body."""
    queries: dict[str, str]
    qrels: Qrels
    lookup: Lookup | None = None
    """Finds the texts of some documents without reading all; None where there is no such index."""
    count: Callable[[], int | None] = lambda: None
    """The number of documents, where it is known without reading all."""

    def document_texts(self, ids: Iterable[str], skip_unknown: bool = False) -> dict[str, str]:
        """The texts of the named documents, in the order of the ids.

        Raises DataError where the collection has no such document, unless told to skip those.
        """
        order = dict.fromkeys(ids)
        if self.lookup:
            found = self.lookup(set(order))
        else:
            found = {doc_id: text for doc_id, text in self.documents() if doc_id in order}
        if not skip_unknown and (unknown := order.keys() - found.keys()):
            raise DataError(
                f"collection {self.name!r} has no document {min(unknown)!r} ({len(unknown)} of "
                f"{len(order)} ids are unknown): candidates and documents must belong together"
            )
        return {doc_id: found[doc_id] for doc_id in order if doc_id in found}


def title_and_text(title: str | None, text: str) -> str:
    """What is indexed and scored of a document: `title text`, without blanks at either end."""
    return f"{title or ''} {text}".strip()


def from_files(name: str, documents: Path, queries: Path, qrels: Path) -> Collection:
    return Collection(
        name=name,
        documents=lambda: read_texts(documents),
        queries=dict(read_texts(queries)),
        qrels=read_qrels(qrels),
    )


def read_texts(path: Path) -> Texts:
    """(id, text) of a .tsv (`id<TAB>text`), .jsonl (`_id`, `title`, `text`) or .trec file (markup).

    Raises DataError with `file:line` for a malformed line, an id that occurs twice, text that is
    not UTF-8, an empty and a cut-off file.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    lines = {".tsv": _tsv, ".txt": _tsv, ".jsonl": _json, ".trec": read_markup}.get(suffix)
    if lines is None:
        raise DataError(
            f"{path}: texts are read from .tsv, .jsonl and .trec files (or .gz of these)"
        )
    seen: set[str] = set()
    for number, text_id, text in lines(path):
        if text_id.split() != [text_id]:
            raise DataError(
                f"{path}:{number}: the id {text_id!r} is empty or has blanks: no run can hold it"
            )
        if text_id in seen:
            raise DataError(f"{path}:{number}: the id {text_id!r} occurs twice")
        seen.add(text_id)
        yield text_id, text


def _tsv(path: Path) -> Iterator[tuple[int, str, str]]:
    return _lines(path, _parse_tsv)


def _json(path: Path) -> Iterator[tuple[int, str, str]]:
    return _lines(path, _parse_json)


def _lines(path: Path, parse: Callable[[str], tuple[str, str]]) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of each line that is not blank."""
    for number, line in enumerate(files.read_lines(path), 1):
        decoded = files.text(line, f"{path}:{number}").rstrip("\r\n")
        if not decoded.strip():
            continue
        try:
            text_id, text = parse(decoded)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}: expected {parse.__doc__}, found {decoded[:60]!r}"
            ) from error
        yield number, text_id, text


def _parse_tsv(line: str) -> tuple[str, str]:
    """id<TAB>text"""
    text_id, text = line.split("\t", 1)
    return text_id.strip(), text.strip()


def _parse_json(line: str) -> tuple[str, str]:
    """an object with `_id` and `text`"""
    record = json.loads(line)
    id_key = next((key for key in ("_id", "id", "doc_id", "query_id") if key in record), "_id")
    return str(record[id_key]), title_and_text(record.get("title"), record["text"])


class Passage(NamedTuple):
    """A text with what is known of it for its query."""

    doc_id: str
    """A checksum of the text: equal texts are one document, whatever the file calls them."""
    text: str
    label: int
    score: float | None


class Record(NamedTuple):
    """One line."""

    query_id: str
    """The number of its line."""
    query: str
    passages: list[Passage]


def load_jsonl(spec: JsonlSpec) -> Collection:
    """The file's passages as documents, its queries, and the labels as qrels."""
    path = files.checked(spec.file)
    queries, qrels = {}, {}
    for record in read_records(path):
        queries[record.query_id] = record.query
        qrels[record.query_id] = {
            passage.doc_id: passage.label for passage in record.passages if passage.label
        }

    def documents() -> Texts:
        seen: set[str] = set()
        for record in read_records(path):
            for passage in record.passages:
                if passage.doc_id not in seen:
                    seen.add(passage.doc_id)
                    yield passage.doc_id, passage.text

    return Collection(name=spec.name, documents=documents, queries=queries, qrels=qrels)


def read_records(path: Path) -> Iterator[Record]:
    """The lines of a file (or .gz). Raises DataError with `file:line` for one that is wrong."""
    for number, line in enumerate(files.read_lines(path), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            query, passages = record["query"], list(map(_passage, record["passages"]))
            if not isinstance(query, str) or not query.strip():
                raise ValueError("the query has no text")
            if not passages:
                raise ValueError("no passages")
        except (ValueError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{place}: expected an object with `query` and `passages`, each of these with "
                f"`text`, `label` and `teacher_score`; {what}"
            ) from error
        yield Record(str(number), query, passages)


def _passage(entry: Any) -> Passage:
    text, label, score = entry["text"], entry.get("label", 0), entry.get("teacher_score")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a passage has no text")
    if isinstance(label, bool) or not isinstance(label, int | float) or label != int(label):
        raise ValueError(f"the label {label!r} is not a whole number")
    if score is not None and (not isinstance(score, int | float) or not math.isfinite(score)):
        raise ValueError(f"the score {score!r} is not a finite number")
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Passage(name, text, int(label), score)

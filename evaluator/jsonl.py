"""Training files that carry their texts: one query with its passages on each line.

`{"query": text, "passages": [{"text": text, "label": 1, "teacher_score": 9.5}, …]}`; label 1
marks what is relevant, a score is needed where one learns from scores.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evaluator import files
from evaluator.collections import Collection, Texts
from evaluator.specs import JsonlSpec
from xsweep import DataError


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


def load(spec: JsonlSpec) -> Collection:
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

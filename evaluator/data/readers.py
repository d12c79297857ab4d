"""Readers of tables, JSON lines, TREC markup, training files with their texts, and Parquet."""

import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from xsweep.errors import DataError, first_line
from xsweep.evaluator.data import files

if TYPE_CHECKING:
    import pyarrow

Texts = Iterator[tuple[str, str]]
"""(id, text) of documents or queries."""


def read_texts(path: Path) -> Texts:
    """(id, text) of a .tsv (`id<TAB>text`), .jsonl (`_id`, `title`, `text`) or .trec file (markup).

    A title or text that is null is empty. A first line of column names in a .tsv is skipped. Raises
    DataError with `file:line` for a malformed line, an id or text of another type, an id that
    occurs twice, text that is not UTF-8, an empty and a cut-off file.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS:
        raise DataError(
            f"{path}: texts are read from .tsv, .jsonl and .trec files (or .gz of these)"
        )
    seen: set[str] = set()
    for number, text_id, text in _READERS[suffix](path):
        if not text_id or _BLANK.search(text_id):
            raise DataError(
                f"{path}:{number}: the id {text_id!r} is empty or has blanks: no run can hold it"
            )
        if text_id in seen:
            raise DataError(f"{path}:{number}: the id {text_id!r} occurs twice")
        seen.add(text_id)
        yield text_id, text


def _lines(parse: Callable[[str], tuple[str, str]], path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of each line that is not blank."""
    for number, line in enumerate(files.read_lines(path), 1):
        decoded = files.decode(line, f"{path}:{number}").rstrip("\r\n")
        if not decoded.strip():
            continue
        try:
            text_id, text = parse(decoded)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: expected {parse.__doc__}, found {decoded[:60]!r}"
            ) from error
        if number > 1 or not {text_id.lower(), *text.lower().split("\t")} <= _COLUMN_NAMES:
            yield number, text_id, text


_BLANK = re.compile(r"[ \t\r\n\f\v]")
"""The blanks that separate the columns of a run; a no-break space may be part of an id."""
_COLUMN_NAMES = {
    *("id", "_id", "docid", "doc_id", "did", "pid", "docno", "qid", "query_id", "query-id"),
    *("corpus-id", "title", "text", "contents", "passage", "document", "doc", "body", "query"),
}


def _parse_tsv(line: str) -> tuple[str, str]:
    """id<TAB>text"""
    text_id, text = line.split("\t", 1)
    return text_id.strip(" \r"), text.strip()


def _parse_json(line: str) -> tuple[str, str]:
    """an object with `_id`, a text or a whole number, and `text`, a text or null"""
    record = json.loads(line)
    id_key = next((key for key in ("_id", "id", "doc_id", "query_id") if key in record), "_id")
    text_id, title, text = record[id_key], record.get("title"), record["text"]
    if type(text_id) not in (str, int) or not {type(title), type(text)} <= {str, NoneType}:
        raise TypeError
    joined = f"{title or ''} {text or ''}".strip()
    f"{text_id}{joined}".encode()  # raises for half of a surrogate pair, which UTF-8 cannot hold
    return str(text_id), joined


_TAGS = ("HEADLINE", "TITLE", "TTL", "HEAD", "HL", "DD", "LP", "LEADPARA", "GRAPHIC", "TEXT")
_CONTENT = re.compile(rf"<({'|'.join(_TAGS)})\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_DOCNO = re.compile(r"<DOCNO>\s*(.*?)\s*</DOCNO>", re.DOTALL | re.IGNORECASE)
_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TAG = re.compile(
    r"""</?[A-Za-z][\w.-]*(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s<>"']+))*\s*/?>"""
    "|<!--.*?-->",
    re.DOTALL,
)
"""A tag or comment; `<` before anything else is text."""
_TITLE = re.compile(rf"<title>\s*(?:Topic:)?(.*?)(?={_TAG.pattern})", re.DOTALL | re.IGNORECASE)
_START = re.compile(r"<(DOC|top)>", re.IGNORECASE)
_END = re.compile(r"</(?:DOC|top)>", re.IGNORECASE)
_AFTER_END = re.compile(r"(?<=</DOC>)|(?<=</top>)", re.IGNORECASE)
_OPENED, _CLOSED = (
    re.compile(rf"<{slash}(?:{'|'.join(_TAGS)})\b", re.IGNORECASE) for slash in ("", "/")
)


def _markup(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of each document (`<DOC>`, `<DOCNO>`) or topic (`<top>`, `<num>`).

    A document's text is that of its content elements, headings included, in their order, without
    tags; if it has none of them, all its text except the id. The text of a topic is its title, as
    rankers use it; description and narrative are for the assessors. Raises DataError with
    `file:line` for an element without an id or a topic without a title, one that is not closed,
    text outside of elements, and text that is not UTF-8.
    """
    for start, element in _elements(path):
        openings = [opening.lower() for opening in _START.findall(element)]
        if not _START.match(element):
            raise DataError(
                f"{path}:{start}: expected <DOC> or <top>, found {element.strip()[:60]!r}"
            )
        if len(openings) > 1 or not _END.search(element):
            raise DataError(f"{path}:{start}: the element is not closed by </{openings[0]}>")
        yield start, *_parse_element(element, openings[0] == "top", f"{path}:{start}")


def _elements(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the stretches that end in `</DOC>` or `</top>`, and of the rest of a file."""
    start, element = 0, ""
    for number, line in enumerate(files.read_lines(path), 1):
        text = files.decode(line, f"{path}:{number}")
        for part in _AFTER_END.split(text) if _END.search(text) else (text,):
            if not element:
                start, part = number, part.lstrip()
                if not part or part.startswith(("<?", "<!")):
                    continue
            element += part
            if _END.search(part):
                yield start, element
                element = ""
    if element:
        yield start, element


def _parse_element(element: str, is_topic: bool, place: str) -> tuple[str, str]:
    identity = (_NUM if is_topic else _DOCNO).search(element)
    if not identity:
        raise DataError(f"{place}: the element has no {'<num>' if is_topic else '<DOCNO>'}")
    if is_topic:
        title = _TITLE.search(element)
        if not title:
            raise DataError(f"{place}: the topic {identity[1]} has no <title>")
        parts = [title[1]]
    else:
        parts = [match[2] for match in _CONTENT.finditer(element)]
        if len(_OPENED.findall(element)) != len(_CLOSED.findall(element)):
            raise DataError(f"{place}: document {identity[1]} has an element that is not closed")
        parts = parts or [_DOCNO.sub(" ", element)]
    plain = html.unescape(_TAG.sub(" ", " ".join(parts)))
    return identity[1], " ".join(plain.split())


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, str, str]]]] = {
    ".tsv": partial(_lines, _parse_tsv),
    ".txt": partial(_lines, _parse_tsv),
    ".jsonl": partial(_lines, _parse_json),
    ".trec": _markup,
}


class Passage(NamedTuple):
    """A passage of a training file, with its label and score for the query."""

    doc_id: str
    """A checksum of the text: equal texts are one document, whatever the file calls them."""
    text: str
    label: int
    score: float | None


class Record(NamedTuple):
    """One line of a training file."""

    query_id: str
    """The number of its line."""
    query: str
    passages: list[Passage]


def read_records(path: Path) -> Iterator[Record]:
    """The lines of a training file that carries its texts (.jsonl or .gz of it).

    `{"query": text, "passages": [{"text": text, "label": 1, "teacher_score": 9.5}, …]}`; label 1
    marks what is relevant, a score is needed only for learning from scores. Raises DataError with
    `file:line` for a malformed line.
    """
    for number, line in enumerate(files.read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            query, passages = record["query"], list(map(_passage, record["passages"]))
            if not isinstance(query, str) or not query.strip():
                raise ValueError("the query has no text")
            query.encode()
            if not passages:
                raise ValueError("no passages")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path}:{number}: expected an object with `query` and `passages`, each of these "
                f"with `text`, `label` and `teacher_score`; {problem}"
            ) from error
        yield Record(str(number), query, passages)


def _passage(entry: Any) -> Passage:
    text, label, score = entry["text"], entry.get("label", 0), entry.get("teacher_score")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a passage has no text")
    if not _is_number(label) or not float(label).is_integer():
        raise ValueError(f"the label {label!r} is not a whole number")
    if score is not None and not _is_number(score):
        raise ValueError(f"the score {score!r} is not a finite number")
    doc_id = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Passage(doc_id, text, int(label), score)


def _is_number(value: Any) -> bool:
    """Tests for a finite number that a float32 can hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 2**127


BATCH_ROWS = 16_384


def read_parquet(path: Path, columns: Sequence[str]) -> "Iterator[pyarrow.RecordBatch]":
    """Batches of some columns of Parquet files (see `files.parquet_files`), streamed.

    Raises DataError if there is no file, it is damaged, or it lacks a column.
    """
    import pyarrow.parquet

    parts = files.parquet_files(path)
    if not parts:
        raise DataError(f"{path}: there are no Parquet files")
    for part in parts:
        try:
            with pyarrow.parquet.ParquetFile(part) as file:
                if missing := set(columns) - set(file.schema_arrow.names):
                    raise DataError(
                        f"{part}: there is no column {min(missing)!r}, there are "
                        f"{', '.join(file.schema_arrow.names)}"
                    )
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns))
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{part}: cannot be read: {first_line(error)}") from error


def parquet_texts(path: Path, columns: Sequence[str]) -> Iterator[str]:
    """All texts of the columns, row by row, also those of lists."""
    for batch in read_parquet(path, columns):
        for row in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            for cell in row:
                for text in cell if isinstance(cell, list) else (cell,):
                    yield text or ""

"""Collections: documents, queries and qrels, whatever they come from."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluator import files
from evaluator.layouts import folder_files, folder_sha256
from evaluator.markup import read_markup
from evaluator.specs import (
    ApidocsSpec,
    CollectionSpec,
    FilesSpec,
    FolderSpec,
    IrdsSpec,
    JsonlSpec,
)
from evaluator.trec import Qrels, read_qrels
from xsweep import DataError

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


def load_collection(spec: CollectionSpec) -> Collection:
    """The collection that a spec names.

    Raises DataError where its files are missing, damaged or not what was declared.
    """
    match spec:
        case ApidocsSpec():
            from evaluator import apidocs

            return apidocs.load(spec)
        case IrdsSpec():
            from evaluator import irds

            return irds.load(spec)
        case FilesSpec():
            paths = [files.checked(file) for file in (spec.documents, spec.queries, spec.qrels)]
            return _from_files(spec.name, *paths)
        case FolderSpec():
            return _from_folder(spec)
        case JsonlSpec():
            from evaluator import jsonl

            return jsonl.load(spec)


def title_and_text(title: str | None, text: str) -> str:
    """What is indexed and scored of a document: `title text`, without blanks at either end."""
    return f"{title or ''} {text}".strip()


def _from_folder(spec: FolderSpec) -> Collection:
    folder = Path(spec.path)
    paths = folder_files(folder, spec.split)
    if spec.sha256 and (found := folder_sha256(folder, spec.split)) != spec.sha256:
        raise DataError(
            f"{folder}: the files of split {spec.split!r} have sha256 {found}, declared is "
            f"{spec.sha256}: they were changed or are others"
        )
    return _from_files(spec.name, *paths)


def _from_files(name: str, documents: Path, queries: Path, qrels: Path) -> Collection:
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

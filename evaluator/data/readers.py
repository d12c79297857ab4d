"""Folders that hold a collection: which file of a folder has the documents, queries and qrels.

BEIR's layout is `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`. TREC's has no one set of
names; read are:

documents: `documents`, `collection`, `corpus`, `passages` or `docs` + `.tsv`, `.jsonl` or `.trec`
queries: `queries` or `topics` + `.SPLIT` or nothing + `.tsv`, `.txt`, `.jsonl` or `.trec`
qrels: `qrels` + `.SPLIT` or nothing + `.txt`, `.tsv`, `.trec`, `.qrels` or nothing

Each file may be gzipped.

Documents and topics in TREC's markup: `<DOC>` with `<DOCNO>`, `<top>` with `<num>`, `<title>`.

A document's text is that of its content elements, headings first as they stand, tags removed. Of a
topic the title is read, as rankers do; description and narrative are for the assessors.
"""

import html
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from xsweep.errors import DataError
from xsweep.evaluator.data.files import checksum, combined, either, read_lines, text


class FolderFiles(NamedTuple):
    """The three files of a collection."""

    documents: Path
    queries: Path
    qrels: Path


def folder_files(folder: Path, split: str) -> FolderFiles:
    """The files of one split of a folder, in BEIR's layout where it has a `corpus.jsonl`.

    Raises DataError where a file is missing, or where several could be meant.
    """
    if (documents := either(folder / "corpus.jsonl")).exists() or (folder / "qrels").is_dir():
        return FolderFiles(
            documents, either(folder / "queries.jsonl"), either(folder / "qrels" / f"{split}.tsv")
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    return FolderFiles(
        _one(
            folder,
            "documents",
            ("documents", "collection", "corpus", "passages", "docs"),
            ("",),
            (".tsv", ".jsonl", ".trec"),
        ),
        _one(
            folder,
            "queries",
            ("queries", "topics"),
            (f".{split}", ""),
            (".tsv", ".txt", ".jsonl", ".trec"),
        ),
        _one(
            folder,
            "qrels",
            ("qrels",),
            (f".{split}", ""),
            (".txt", ".tsv", ".trec", ".qrels", ""),
        ),
    )


def folder_sha256(folder: Path, split: str) -> str:
    """One checksum of a folder's split: of the checksums of its three files."""
    return combined(checksum(path) for path in folder_files(folder, split))


def _one(
    folder: Path, what: str, names: Iterable[str], splits: Iterable[str], suffixes: Iterable[str]
) -> Path:
    """The one file of a kind; a file of the split goes before one for all splits."""
    names, suffixes = list(names), list(suffixes)
    for split in splits:
        tried = [folder / f"{name}{split}{suffix}" for name, suffix in product(names, suffixes)]
        found = [path for path in map(either, tried) if path.is_file()]
        if len(found) > 1:
            raise DataError(
                f"{folder}: the {what} could be {found[0].name} or {found[1].name}: name the "
                "three files in the grid (documents, queries, qrels) in place of the folder"
            )
        if found:
            return found[0]
    raise DataError(
        f"{folder}: no file with the {what}: it is neither in BEIR's layout (corpus.jsonl, "
        f"queries.jsonl, qrels/SPLIT.tsv) nor is there one of "
        f"{', '.join(names)} with one of the endings {', '.join(filter(None, suffixes))}"
    )


CONTENT = ("HEADLINE", "TITLE", "TTL", "HEAD", "HL", "DD", "LP", "LEADPARA", "GRAPHIC", "TEXT")


_CONTENT = re.compile(rf"<({'|'.join(CONTENT)})\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)


_DOCNO = re.compile(r"<DOCNO>\s*(.*?)\s*</DOCNO>", re.DOTALL | re.IGNORECASE)


_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)


_TITLE = re.compile(r"<title>\s*(?:Topic:)?\s*([^<]*)", re.IGNORECASE)


_TAG = re.compile(r"<[^>]*>")


_START = re.compile(r"<(DOC|top)>", re.IGNORECASE)


def read_markup(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of each document or topic of a file, in its order.

    Raises DataError with `file:line` for an element without an id, one that is not closed, text
    outside of elements, and text that is not UTF-8.
    """
    block: list[str] = []
    start, end = 0, ""
    for number, line in enumerate(read_lines(path), 1):
        decoded = text(line, f"{path}:{number}")
        if not block:
            if not decoded.strip() or decoded.lstrip().startswith(("<?", "<!")):
                continue
            opening = _START.match(decoded.strip())
            if not opening:
                raise DataError(
                    f"{path}:{number}: expected <DOC> or <top>, found {decoded.strip()[:60]!r}"
                )
            start, end = number, f"</{opening[1].lower()}>"
        block.append(decoded)
        if end in decoded.lower():
            yield start, *_parse("".join(block), topic=end == "</top>", place=f"{path}:{start}")
            block = []
    if block:
        raise DataError(f"{path}:{start}: the element is not closed by {end} before the file ends")


def _parse(block: str, topic: bool, place: str) -> tuple[str, str]:
    identity = (_NUM if topic else _DOCNO).search(block)
    if not identity:
        raise DataError(f"{place}: the element has no {'<num>' if topic else '<DOCNO>'}")
    if topic:
        title = _TITLE.search(block)
        parts = [title[1]] if title else []
    else:
        parts = [match[2] for match in _CONTENT.finditer(block)]
    plain = html.unescape(_TAG.sub(" ", " ".join(parts)))
    return identity[1], " ".join(plain.split())

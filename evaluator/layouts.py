"""Folders that hold a collection: which file of a folder has the documents, queries and qrels.

BEIR's layout is `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`. TREC's has no one set of
names; read are:

documents: `documents`, `collection`, `corpus`, `passages` or `docs` + `.tsv`, `.jsonl` or `.trec`
queries: `queries` or `topics` + `.SPLIT` or nothing + `.tsv`, `.txt`, `.jsonl` or `.trec`
qrels: `qrels` + `.SPLIT` or nothing + `.txt`, `.tsv`, `.trec`, `.qrels` or nothing

Each file may be gzipped.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from evaluator.files import checksum, combined, either
from xsweep import DataError


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

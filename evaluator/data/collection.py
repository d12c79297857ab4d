"""A collection, and how to make one from three files, from a folder or from a training file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from xsweep.errors import DataError
from xsweep.evaluator.data.files import checked, checksum, combined, plain_or_gz
from xsweep.evaluator.data.readers import Texts, parquet_texts, read_records, read_texts
from xsweep.evaluator.data.trec import Qrels, read_qrels
from xsweep.evaluator.specs import FilesSpec, FolderSpec, JsonlSpec, ParquetSpec


@dataclass(frozen=True)
class Collection:
    """Documents, queries and qrels of one test or training set."""

    name: str
    documents: Callable[[], Texts]
    """Gives a fresh iterator over (id, text), the text being title and body."""
    queries: dict[str, str]
    qrels: Qrels
    lookup: Callable[[set[str]], dict[str, str]] | None = None
    """Finds the texts of some documents without reading all; None without such an index."""
    count: Callable[[], int | None] = lambda: None
    """The number of documents, if it is known without reading all."""

    def document_texts(self, ids: Iterable[str], skip_unknown: bool = False) -> dict[str, str]:
        """The texts of the named documents, in the order of the ids.

        Raises DataError if the collection has no such document, unless `skip_unknown`.
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


def from_files(spec: FilesSpec) -> Collection:
    """The collection in three files, whose declared checksums are verified."""
    documents, queries, qrels = map(checked, (spec.documents, spec.queries, spec.qrels))
    return _collection(spec.name, documents, queries, qrels)


def from_folder(spec: FolderSpec) -> Collection:
    """The collection in a folder (see `folder_files`), whose declared checksum is verified."""
    folder = Path(spec.path)
    files = folder_files(folder, spec.split)
    if spec.sha256 and (found := folder_sha256(folder, spec.split)) != spec.sha256:
        raise DataError(
            f"{folder}: the files of split {spec.split!r} have sha256 {found}, declared is "
            f"{spec.sha256}: they were changed or are others"
        )
    return _collection(spec.name, *files)


def _collection(name: str, documents: Path, queries: Path, qrels: Path) -> Collection:
    return Collection(
        name=name,
        documents=lambda: read_texts(documents),
        queries=dict(read_texts(queries)),
        qrels=read_qrels(qrels),
    )


def from_jsonl(spec: JsonlSpec) -> Collection:
    """A training file's passages as documents, its queries, and its labels as qrels."""
    path = checked(spec.file)
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


def from_parquet(spec: ParquetSpec) -> Collection:
    """All texts of Parquet files as documents, numbered as they are read, queries among them."""
    path = checked(spec.file)

    def documents() -> Texts:
        texts = parquet_texts(path, spec.columns.texts)
        return ((str(number), text) for number, text in enumerate(texts))

    return Collection(name=spec.name, documents=documents, queries={}, qrels={})


class FolderFiles(NamedTuple):
    """The three files of a collection."""

    documents: Path
    queries: Path
    qrels: Path


def folder_files(folder: Path, split: str) -> FolderFiles:
    """The files of one split of a folder; each may be gzipped.

    BEIR's layout is `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`. TREC has no one set of
    names; those read are:

    documents: `documents`, `collection`, `corpus`, `passages` or `docs` + `.tsv`, `.jsonl`, `.trec`
    queries: `queries` or `topics` + `.SPLIT` or nothing + `.tsv`, `.txt`, `.jsonl` or `.trec`
    qrels: `qrels` + `.SPLIT` or nothing + `.txt`, `.tsv`, `.trec`, `.qrels` or nothing

    Raises DataError if a file is missing or ambiguous.
    """
    beir = FolderFiles(
        plain_or_gz(folder / "corpus.jsonl"),
        plain_or_gz(folder / "queries.jsonl"),
        plain_or_gz(folder / "qrels" / f"{split}.tsv"),
    )
    if beir.documents.exists() or (folder / "qrels").is_dir():
        known = folder_splits(folder)
        if known and (folder / "qrels").is_dir() and not beir.qrels.exists():
            raise DataError(f"{folder} has no split {split!r}: there is {', '.join(known)}")
        return beir
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    names = ("documents", "collection", "corpus", "passages", "docs")
    splits = (f".{split}", "")
    return FolderFiles(
        _find(folder, "documents", names, ("",), (".tsv", ".jsonl", ".trec")),
        _find(
            folder, "queries", ("queries", "topics"), splits, (".tsv", ".txt", ".jsonl", ".trec")
        ),
        _find(folder, "qrels", ("qrels",), splits, (".txt", ".tsv", ".trec", ".qrels", "")),
    )


def folder_splits(folder: Path) -> list[str]:
    """The splits of a folder (see `folder_files`); `test` where its qrels are of no split."""
    beir = {path.name.partition(".")[0] for path in (folder / "qrels").glob("*.tsv*")}
    names = (path.name.removesuffix(".gz").split(".") for path in folder.glob("qrels*.*"))
    return sorted(beir or {name[1] if len(name) == 3 else "test" for name in names})


def folder_sha256(folder: Path, split: str) -> str:
    """One checksum of a folder's split, over the checksums of its three files."""
    return combined(checksum(path) for path in folder_files(folder, split))


def _find(
    folder: Path, role: str, names: Sequence[str], splits: Sequence[str], suffixes: Sequence[str]
) -> Path:
    """The one file of a role; a file of the split takes precedence over one for all splits."""
    for split in splits:
        tried = [folder / f"{name}{split}{suffix}" for name, suffix in product(names, suffixes)]
        found = [path for path in map(plain_or_gz, tried) if path.is_file()]
        if len(found) > 1:
            raise DataError(
                f"{folder}: the {role} could be {found[0].name} or {found[1].name}: name the "
                "three files in the grid (documents, queries, qrels) in place of the folder"
            )
        if found:
            return found[0]
    raise DataError(
        f"{folder}: no file with the {role}: it is neither in BEIR's layout (corpus.jsonl, "
        f"queries.jsonl, qrels/SPLIT.tsv) nor is there one of "
        f"{', '.join(names)} with one of the endings {', '.join(filter(None, suffixes))}"
    )

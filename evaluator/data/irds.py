"""Collections of ir_datasets, read from a home that may be read-only, without hanging offline.

ir_datasets writes lookup files beside its sources and fixes its home when it is imported. So a
given home is mirrored by links into a writable folder, and a second home imports the package anew.
Sizes, checksums and addresses of its files come from the list that the package carries, so that
`sources` needs no network.
"""

import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from xsweep.errors import DataError
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.data.readers import Texts
from xsweep.evaluator.data.trec import Qrels, Run, sort_docs
from xsweep.evaluator.specs import IrdsSpec

_user_home = os.environ.get("IR_DATASETS_HOME")

_mirrored: dict[Path, tuple[tuple[str, int], ...]] = {}
"""Mirrors that this process has made, and the times of the folders then."""


def load(spec: IrdsSpec) -> Collection:
    """A collection by its ir_datasets id; queries and qrels are empty if the set has none.

    Raises DataError if the id is unknown, or its files are missing and cannot be downloaded.
    """
    with _dataset(spec) as dataset:
        queries = {query.query_id: query.default_text() for query in _all(dataset, "queries")}
        qrels: Qrels = {}
        for judgement in _all(dataset, "qrels"):
            qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = judgement.relevance

    def documents() -> Texts:
        with _dataset(spec) as dataset:
            # The first document makes ir_datasets unpack its files: no other process may then.
            texts = ((doc.doc_id, doc.default_text().strip()) for doc in dataset.docs_iter())
            first = next(texts)
        yield first
        yield from texts

    def lookup(ids: set[str]) -> dict[str, str]:
        with _dataset(spec) as dataset:
            found = dataset.docs_store().get_many(list(ids))
        return {doc_id: doc.default_text().strip() for doc_id, doc in found.items()}

    def count() -> int | None:
        with _dataset(spec) as dataset:
            return dataset.docs_count()

    return Collection(spec.name, documents, queries, qrels, lookup, count)


def scored_docs(spec: IrdsSpec) -> Run:
    """The candidates that come with the data set. Raises DataError if there are none."""
    run: Run = {}
    with _dataset(spec) as dataset:
        for scored in _all(dataset, "scoreddocs"):
            run.setdefault(scored.query_id, {})[scored.doc_id] = scored.score
    if not run:
        raise DataError(f"data set {spec.id!r} has no scoreddocs: use BM25 or give a run")
    return {query_id: dict(sort_docs(scores)) for query_id, scores in run.items()}


def fetch(spec: IrdsSpec) -> int:
    """Downloads the missing files of a data set, verifies and unpacks them; counts its documents.

    Progress is shown on stderr. Raises DataError, within seconds, if a file cannot be
    downloaded: it needs an agreement, or there is no network.
    """
    for source in sources(spec):
        if not source.present and not source.how.startswith("http"):
            raise DataError(f"data set {spec.id!r}: {source.path} is missing. {source.how}")
    return sum(1 for _ in load(spec).documents())


def _all(dataset: Any, kind: str) -> Iterator[Any]:
    return getattr(dataset, f"{kind}_iter")() if getattr(dataset, f"has_{kind}")() else iter(())


@contextmanager
def _dataset(spec: IrdsSpec) -> Iterator[Any]:
    """The data set, with no other process unpacking or downloading into the same folder."""
    home = _mirror(Path(spec.home)) if spec.home else Path(_user_home or "~/.ir_datasets")
    home = home.expanduser()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "xsweep.lock"):
        package = _package(home)
        try:
            yield package.load(spec.id)
        except DataError:
            raise
        except KeyError as error:
            raise DataError(f"ir_datasets knows no data set {spec.id!r}") from error
        except Exception as error:  # its loaders and the network raise nearly anything
            raise DataError(
                f"data set {spec.id!r} cannot be read from {spec.home or home}, nor downloaded: "
                f"{error}. Put its files there as ir_datasets lays them out, or fetch it on a "
                "machine with network access"
            ) from error


def _package(home: Path) -> Any:
    """ir_datasets, reading from `home`."""
    # One attempt of some seconds, not several minutes of retries, without a network.
    os.environ.setdefault("IR_DATASETS_DL_TRIES", "1")
    os.environ.setdefault("IR_DATASETS_DL_TIMEOUT", "10")
    loaded = sys.modules.get("ir_datasets")
    if loaded is None or os.environ.get("IR_DATASETS_HOME") != str(home):
        os.environ["IR_DATASETS_HOME"] = str(home)
        for name in [name for name in sys.modules if name.split(".")[0] == "ir_datasets"]:
            del sys.modules[name]
    return importlib.import_module("ir_datasets")


def _mirror(home: Path) -> Path:
    """A writable folder of links to every file below `home`."""
    if not home.is_dir():
        raise DataError(f"{home}: no such folder (the home of ir_datasets)")
    home = home.resolve()
    root = os.environ.get("XSWEEP_HOME") or Path(tempfile.gettempdir(), f"xsweep-{os.getuid()}")
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    mirror = Path(root).absolute() / "ir_datasets" / digest
    # Linked folders are followed: licensed corpora are often put in place that way.
    folders = list(os.walk(home, followlinks=True))
    # A folder's time changes with its content: thousands of links need not be checked again.
    state = tuple((path, Path(path).stat().st_mtime_ns) for path, _, _ in folders)
    if _mirrored.get(mirror) == state and mirror.is_dir():
        return mirror
    for folder, _, names in folders:
        for name in names:
            _link(Path(folder, name), mirror / Path(folder).relative_to(home) / name)
    _mirrored[mirror] = state
    return mirror


def _link(source: Path, link: Path) -> None:
    """A link to a file, unless it exists; other processes may make the same one meanwhile."""
    if link.exists():
        return
    with atomic_write(link) as draft:
        if source.name == "irds_version.txt":  # rewritten in place by newer versions
            shutil.copyfile(source, draft)
        else:
            draft.symlink_to(source)


class Source(NamedTuple):
    """One file of a data set."""

    name: str
    path: Path
    """Its place in the home, whether it is there or not."""
    present: bool
    size_bytes: int | None
    """Size of the present file, else the published one."""
    md5: str | None
    """The published checksum."""
    how: str
    """Its address, or how to get it if there is none."""


_SHARED = {
    "msmarco-passage": {"collectionandqueries"},
    "msmarco-passage-v2": {"passages"},
    "disks45": {"docs", "robust04-queries", "robust04-qrels"},
}
"""Files outside folders that all data sets of a family need; in other families: all of them."""
_IN_SHARED = {"msmarco-passage/dev/small"}
"""Data sets whose queries and qrels are in the shared archive."""
_NOT_NEEDED = {"scoreddocs", "docpairs"}


def sources(spec: IrdsSpec) -> list[Source]:
    """The files of a data set. Raises DataError for a family that ir_datasets does not list."""
    family, _, rest = spec.id.partition("/")
    if family not in _downloads():
        raise DataError(f"ir_datasets lists no files of {spec.id!r}")
    entries = dict(_flat(_downloads()[family]))
    folder = home_of(spec) / family
    return sorted(
        _source(folder, name, entries[name]) for name in _needed(family, rest, list(entries))
    )


def home_of(spec: IrdsSpec) -> Path:
    """The folder for the data set's files, whether it exists or not."""
    return Path(spec.home or os.environ.get("IR_DATASETS_HOME") or "~/.ir_datasets").expanduser()


@cache
def _downloads() -> Mapping[str, Any]:
    return json.loads(files("ir_datasets").joinpath("etc/downloads.json").read_text())


def _flat(listed: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in listed.items():
        if "url" in entry or "instructions" in entry:
            yield above + name, entry
        else:
            yield from _flat(entry, f"{above}{name}/")


def _needed(family: str, rest: str, names: list[str]) -> Iterator[str]:
    """The files of a family that the data set `family/rest` needs."""
    whole = [name for name in names if rest == name or rest.startswith(f"{name}/")]
    if whole:  # one archive per data set, such as BEIR's
        yield max(whole, key=len)
        return
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in _NOT_NEEDED:
            continue
        if folder:
            needed = f"{rest}/".startswith(f"{folder}/") and f"{family}/{rest}" not in _IN_SHARED
        else:
            needed = last in _SHARED.get(family, {last})
        if needed:
            yield name


def _source(folder: Path, name: str, entry: Mapping[str, Any]) -> Source:
    path = folder / entry.get("cache_path", name)
    if not path.exists():  # some are kept under a longer name, such as queries.tsv
        path = next(iter(sorted(path.parent.glob(f"{path.name}.*"))), path)
    size = path.stat().st_size if path.is_file() else entry.get("size_hint")
    how = entry.get("url") or " ".join(str(entry["instructions"]).split())
    return Source(name, path, path.exists(), size, entry.get("expected_md5"), how)

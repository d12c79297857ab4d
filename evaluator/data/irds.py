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
from types import FunctionType, MethodType
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


def sources(spec: IrdsSpec) -> list[Source]:
    """The files of a data set; needs no network.

    Raises DataError for one that is unknown, or whose files ir_datasets does not list.
    """
    home, family = home_of(spec), spec.id.partition("/")[0]
    found: dict[tuple[str, str], Source] = {}
    for download in _downloads_of(spec.id):
        # the data set's own family first: some files are listed in several
        for name in sorted(_downloads(), key=lambda name: name != family):
            listed = (each for each in _flat(_downloads()[name]) if _is_entry_of(download, *each))
            if entry := next(listed, None):
                found[name, entry[0]] = _source(home / name, *entry)
                break
    if not found:
        raise DataError(f"ir_datasets lists no files of {spec.id!r}")
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != family, key))]


def _downloads_of(dataset_id: str) -> list[Any]:
    """The downloads that ir_datasets' handlers of documents, queries and qrels would make."""
    package = sys.modules.get("ir_datasets") or importlib.import_module("ir_datasets")
    try:
        dataset = package.load(dataset_id)
    except KeyError:
        return []
    kinds = [kind for kind in ("docs", "queries", "qrels") if getattr(dataset, f"has_{kind}")()]
    todo = [getattr(dataset, f"{kind}_handler")() for kind in kinds]
    seen, found = set[int](), list[Any]()
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, package.Dataset):
            continue
        seen.add(id(each))
        if isinstance(each, package.util.Download):
            found.append(each)
        elif isinstance(each, dict):
            # other data sets in a table are not needed by this one
            others = any(isinstance(value, package.Dataset) for value in each.values())
            todo += [] if others else each.values()
        elif isinstance(each, list | tuple | set):
            todo += each
        elif isinstance(each, FunctionType):
            todo += [cell.cell_contents for cell in each.__closure__ or ()]
        elif isinstance(each, MethodType):
            todo.append(each.__self__)
        elif type(each).__module__.startswith("ir_datasets"):
            todo += getattr(each, "__dict__", {}).values()
    return found


def _is_entry_of(download: Any, name: str, entry: Mapping[str, Any]) -> bool:
    if md5 := entry.get("expected_md5"):
        return download.expected_md5 == md5
    cached = entry.get("cache_path", name)
    return download.expected_md5 is None and str(download._cache_path).endswith(f"/{cached}")


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


def _source(folder: Path, name: str, entry: Mapping[str, Any]) -> Source:
    path = folder / entry.get("cache_path", name)
    if not path.exists():  # some are kept under a longer name, such as queries.tsv
        path = next(iter(sorted(path.parent.glob(f"{path.name}.*"))), path)
    size = path.stat().st_size if path.is_file() else entry.get("size_hint")
    how = entry.get("url") or " ".join(str(entry["instructions"]).split())
    return Source(name, path, path.exists(), size, entry.get("expected_md5"), how)

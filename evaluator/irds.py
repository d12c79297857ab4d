"""Collections of ir_datasets, read from a folder that may be read-only, without hanging offline.

ir_datasets writes lookup files beside its sources and fixes its folder when it is imported. So a
given home is mirrored by links into a writable folder, and a second home imports the package anew.
"""

import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from evaluator.collections import Collection, Texts
from evaluator.files import atomic_write
from evaluator.specs import IrdsSpec
from evaluator.trec import Qrels, Run, sort_docs
from xsweep import DataError

_user_home = os.environ.get("IR_DATASETS_HOME")
_mirrored: dict[Path, tuple[tuple[str, int], ...]] = {}
"""Mirrors that this process has made, and the times of the folders then."""


def load(spec: IrdsSpec) -> Collection:
    """A collection by its ir_datasets id; queries and qrels are empty where the set has none.

    Raises DataError where the id is unknown or its files are neither here nor to be had.
    """
    with _dataset(spec) as dataset:
        queries = {query.query_id: query.default_text() for query in _all(dataset, "queries")}
        qrels: Qrels = {}
        for judgement in _all(dataset, "qrels"):
            qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = judgement.relevance

    def documents() -> Texts:
        with _dataset(spec) as dataset:
            # The first document makes ir_datasets unpack its files: nobody else may meanwhile.
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
    """The candidates that come with the data set. Raises DataError where there are none."""
    run: Run = {}
    with _dataset(spec) as dataset:
        for scored in _all(dataset, "scoreddocs"):
            run.setdefault(scored.query_id, {})[scored.doc_id] = scored.score
    if not run:
        raise DataError(f"data set {spec.id!r} has no scoreddocs: use BM25 or give a run")
    return {query_id: dict(sort_docs(scores)) for query_id, scores in run.items()}


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
    # One attempt of some seconds, not minutes of them, where there is no network.
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
    places = os.environ.get("XSWEEP_HOME") or Path(tempfile.gettempdir(), f"xsweep-{os.getuid()}")
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    mirror = Path(places).absolute() / "ir_datasets" / digest
    # Through links to folders, too: that is how licensed corpora are put into place.
    folders = list(os.walk(home, followlinks=True))
    # A folder's time changes with what is in it: thousands of links need no second look.
    state = tuple((path, Path(path).stat().st_mtime_ns) for path, _, _ in folders)
    if _mirrored.get(mirror) == state and mirror.is_dir():
        return mirror
    for folder, _, names in folders:
        for name in names:
            _link(Path(folder, name), mirror / Path(folder).relative_to(home) / name)
    _mirrored[mirror] = state
    return mirror


def _link(source: Path, link: Path) -> None:
    """A link to a file, unless it is there; others may make the same one at this moment."""
    if link.exists():
        return
    with atomic_write(link) as draft:
        if source.name == "irds_version.txt":  # rewritten in place by newer versions
            shutil.copyfile(source, draft)
        else:
            draft.symlink_to(source)

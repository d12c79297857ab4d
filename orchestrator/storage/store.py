"""The store: a folder that all hosts share, or an object store of which each host keeps copies.

Every attempt writes a folder of its own, so no attempt can touch another's files. The database
keeps folders relative to the root, so that a store can be moved. Results count only once the
database has accepted them; a folder by itself proves nothing.
With an object store, jobs write to local copies, which are uploaded, the manifests last.
"""

import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from xsweep.errors import DataError, SetupError, XsweepError, first_line
from xsweep.evaluator.data.files import MANIFEST, atomic_write, checksum, read_manifest
from xsweep.orchestrator.settings import absolute

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from xsweep.db.results import AttemptFolder

log = logging.getLogger(__name__)

RESULTS = ("summary.json", "provenance.json", "per_query.json")
"""Files of a finished folder that a controller reads."""
UPLOAD_EVERY_S = 15.0
KEPT_CHECKPOINTS = 2
"""Checkpoints that a job that is not done keeps; the second in case the furthest is damaged."""
CHECKPOINT = re.compile(r"(?P<folder>.*/checkpoints/step-(?P<step>\d+))/")


def attempt_folder(kind: str, identity: str, token: int) -> str:
    """Return the folder that one attempt writes to, relative to the root."""
    return f"jobs/{kind}/{identity[:2]}/{identity}/attempt-{token}"


@dataclass(frozen=True)
class Store:
    """The folders of all attempts; names are relative to the root.

    Every method that takes a name raises SetupError where it leads out of the store, and where an
    object store does not answer.
    """

    root: Path
    """Folder of the results, or of this host's copies of them; the same path on every host."""
    url: str | None = None
    """Object store that holds the results; None where they are below `root`."""

    def resolve(self, name: str) -> Path:
        """Return the absolute path of a folder or file on this host."""
        path = Path(os.path.normpath(self.root / name))
        if not path.is_relative_to(self.root):
            raise SetupError(f"{name!r} is outside the store {self.root}: the job table is damaged")
        return path

    def fetch(self, folder: str) -> Path:
        """Return this host's copy of a folder, downloaded if needed.

        A finished folder is downloaded once, its manifest last. From an unfinished one, an earlier
        attempt's, the files that are missing here are downloaded. Safe to run in several processes.
        """
        path = self.resolve(folder)
        if self.url is None or (path / MANIFEST).exists():
            return path
        with self._remote(folder) as (files, place):
            found = _entries(files, place)
            for name in sorted(found, key=_manifests_last):
                copy = path / name
                if not copy.exists() or copy.stat().st_size != found[name]["size"]:
                    _download(files, f"{place}/{name}", copy)
        return path

    def fetch_results(self, folder: str) -> Path:
        """Return a folder with the manifest and the `RESULTS` of a finished folder.

        Every file that the manifest lists exists with its size, and with its checksum where it is
        on this host. Raises DataError where the folder is unfinished or a file missing or damaged.
        """
        path = self.resolve(folder)
        if self.url is None:
            read_manifest(path)
            return path
        path = self.root / ".results" / folder
        with self._remote(folder) as (files, place):
            sizes = {name: entry["size"] for name, entry in _entries(files, place).items()}
            if MANIFEST not in sizes:
                raise DataError(
                    f"{self.url}/{folder}: unfinished (it has no {MANIFEST}): run its job again"
                )
            listed = json.loads(files.cat_file(f"{place}/{MANIFEST}"))["files"]
            for name, entry in listed.items():
                if sizes.get(name) != entry["bytes"]:
                    raise DataError(
                        f"{self.url}/{folder}/{name}: {sizes.get(name, 'missing')} where the "
                        f"manifest lists {entry['bytes']} bytes: run the job again"
                    )
            for name in sizes.keys() & {MANIFEST, *RESULTS}:
                _download(files, f"{place}/{name}", path / name)
        for name in listed.keys() & set(RESULTS):
            if checksum(path / name) != listed[name]["sha256"]:
                raise DataError(f"{self.url}/{folder}/{name}: damaged: run the job again")
        return path

    def fetch_file(self, name: str) -> Path:
        """Return a file that still grows, such as a log, as it is in the store now."""
        path = self.resolve(name)
        if self.url is None:
            return path
        with self._remote(name) as (files, place):
            if not files.exists(place):
                return path
            copy = self.root / ".results" / name
            _download(files, place, copy)
        return copy

    def is_published(self, folder: str) -> bool:
        """Return whether a finished folder is in the store."""
        with self._remote(f"{folder}/{MANIFEST}") as (files, place):
            return bool(files.exists(place))

    def publish(self, folder: str) -> None:
        """Upload a finished folder."""
        if self.url is not None:
            Uploads(self, folder, None).finish()

    def listing(self, folder: str) -> dict[str, tuple[int, float]]:
        """List the files below a folder: {name: (bytes, seconds since the epoch)}."""
        with self._remote(folder) as (files, place):
            found = _entries(files, place)
        return {
            name: (
                entry["size"],
                entry["LastModified"].timestamp() if "LastModified" in entry else entry["mtime"],
            )
            for name, entry in found.items()
        }

    def remove(self, folder: str) -> None:
        """Remove a folder from the store and from this host."""
        shutil.rmtree(self.resolve(folder), ignore_errors=True)
        if self.url is not None:
            with self._remote(folder) as (files, place):
                files.rm(place, recursive=True)

    @contextmanager
    def uploading(
        self, folder: str | None, log_file: str, every_s: float = UPLOAD_EVERY_S
    ) -> Iterator[None]:
        """Upload a job's files while it runs, and all of them however it ends.

        Without a folder the log alone is uploaded; the manifest only if the job wrote one. An
        upload that fails while the job runs is tried again; one that fails at its end raises.
        """
        if self.url is None:
            yield
            return
        uploads, ended = Uploads(self, folder, log_file), threading.Event()

        def repeat() -> None:
            while not ended.wait(every_s):
                try:
                    uploads.sync()
                except Exception as error:  # the last upload, at the end, raises it
                    log.warning("upload to the store failed, trying again: %s", first_line(error))

        thread = threading.Thread(target=repeat, name="uploads", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            uploads.finish()

    @contextmanager
    def _remote(self, name: str) -> Iterator[tuple["AbstractFileSystem", str]]:
        """Give the store's file system and the place of a name in it."""
        self.resolve(name)
        try:
            files, base = open_remote(self.url) if self.url else (_local_disk(), str(self.root))
            yield files, f"{base}/{name}"
        except XsweepError:
            raise
        except Exception as error:  # every object store has errors of its own
            raise SetupError(
                f"{self.url or self.root}/{name}: the store does not answer ({first_line(error)})"
            ) from error


class Uploads:
    """Uploads the files of a job that are new or changed since the last time."""

    def __init__(self, store: Store, folder: str | None, log_file: str | None) -> None:
        self._store, self._folder, self._log_file = store, folder, log_file
        self._known: dict[str, tuple[int, int]] = {}

    def sync(self) -> None:
        """Upload complete files and remove those that are gone here; never the manifest."""
        seen: dict[str, tuple[int, int]] = {}
        with self._store._remote("") as (files, base):
            for name in self._names():
                path = self._store.root / name
                try:
                    stat = path.stat()
                    seen[name] = stat.st_size, stat.st_mtime_ns
                    if self._known.get(name) != seen[name]:
                        files.put_file(str(path), f"{base}{name}")
                except FileNotFoundError:  # a checkpoint that was replaced meanwhile
                    seen.pop(name, None)
            for gone in self._known.keys() - seen.keys():
                with suppress(FileNotFoundError):
                    files.rm_file(f"{base}{gone}")
        self._known = seen

    def finish(self) -> None:
        """Upload the rest, then the manifest: from here on the folder is finished for all hosts."""
        self.sync()
        if self._folder is None:
            return
        name = f"{self._folder}/{MANIFEST}"
        if (self._store.root / name).exists():
            with self._store._remote(name) as (files, place):
                files.put_file(str(self._store.root / name), place)

    def _names(self) -> Iterator[str]:
        root = self._store.root
        if self._log_file and (root / self._log_file).exists():
            yield self._log_file
        if self._folder is None:
            return
        folder = root / self._folder
        inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        # Files being written are hidden or named .part, themselves or their folder.
        complete = [
            path.as_posix()
            for path in inside
            if not any(part.startswith(".") or part.endswith(".part") for part in path.parts)
        ]
        for name in sorted(complete, key=_manifests_last):
            if name != MANIFEST:
                yield f"{self._folder}/{name}"


def store_at(uri: str) -> Store:
    """Return the store of a URI without checking that it can be used.

    Raises SetupError for a URL with a password, without showing it.
    """
    if "://" not in uri or uri.startswith("file://"):
        return Store(absolute(uri.removeprefix("file://")))
    if urlsplit(uri).password:  # the URL appears in messages, logs and tasks
        raise SetupError(
            "the store's URL holds a password: leave it out; give credentials by the environment"
        )
    url = uri.rstrip("/")
    home = Path(os.environ.get("XSWEEP_CACHE") or f"{tempfile.gettempdir()}/xsweep-{os.getuid()}")
    root = absolute(home / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16])
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if home.stat().st_uid != os.getuid():
            raise SetupError(f"{home} is another user's: choose a folder with XSWEEP_CACHE")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"{root} cannot be made ({error.strerror}): choose a folder with XSWEEP_CACHE"
        ) from error
    return Store(root, url)


def open_store(uri: str, *, read_only: bool = False) -> Store:
    """Return the store of a URI, created if needed, after writing to it.

    With `read_only`, a store in a folder is neither created nor written.

    The URI is a path or a `file://` URL, on a disk that every node mounts at the same path, or a
    URL that fsspec supports, such as `s3://bucket/folder`. Raises SetupError where the store cannot
    be written or no package for the URL's scheme is installed.
    """
    if uri.startswith("memory:"):
        raise SetupError(f"store {uri}: its content is lost with the process that wrote it")
    store = store_at(uri)
    if store.url or not read_only:
        require_writable(store)
    return store


def require_writable(store: Store, size_bytes: int = 0) -> None:
    """Write a file of some size into the store and remove it; see `open_store` for its errors."""
    uri = store.url or store.root
    try:
        if store.url is None:
            store.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(prefix=".probe-", dir=store.root) as probe:
                probe.write(bytes(size_bytes))
        else:
            files, base = open_remote(store.url)
            name = f"{base}/.probe-{uuid.uuid4().hex}"
            files.pipe_file(name, bytes(size_bytes))
            files.rm_file(name)
    except (ImportError, ValueError) as error:
        raise SetupError(
            f"store {uri}: {error}; for s3:// install xsweep[s3], for others the package that "
            "fsspec names, or give a folder that every node mounts"
        ) from error
    except Exception as error:  # every object store has errors of its own
        remedy = (
            "make room, or choose another folder with --store or XSWEEP_STORE"
            if store.url is None
            else "check its name, its endpoint and the credentials in the environment"
        )
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SetupError(f"store {uri} cannot be written ({reason}): {remedy}") from error


class Garbage(NamedTuple):
    """A folder of the store that can be removed."""

    folder: str
    size_bytes: int
    why: str


def find_garbage(
    store: Store, attempts: "list[AttemptFolder]", *, older_than_s: float
) -> list[Garbage]:
    """Find superseded attempts of done jobs, and all but the furthest checkpoints of other jobs.

    Never an accepted result, a running attempt, a log, or a folder that this database does not
    know; nothing that was written within `older_than_s`, since a worker that lost its controller
    may still run.
    """
    by_job: dict[str, list[AttemptFolder]] = {}
    for attempt in attempts:
        by_job.setdefault(attempt.identity, []).append(attempt)
    needed = {attempt.folder for attempt in attempts if attempt.accepted}
    garbage: list[Garbage] = []
    for of_job in by_job.values():
        if any(attempt.live for attempt in of_job):
            continue
        files = {
            f"{attempt.folder}/{name}": stat
            for attempt in of_job
            if not attempt.accepted
            for name, stat in store.listing(attempt.folder).items()
        }
        why = f"another attempt at {of_job[0].name} was accepted"
        superseded = [(attempt.folder, why) for attempt in of_job if not attempt.accepted]
        candidates = superseded if of_job[0].job_done else _old_checkpoints(of_job, files)
        for folder, why in candidates:
            assert not any(each == folder or each.startswith(f"{folder}/") for each in needed)
            stats = [stat for name, stat in files.items() if name.startswith(f"{folder}/")]
            if stats and time.time() - max(at for _, at in stats) >= older_than_s:
                garbage.append(Garbage(folder, sum(size for size, _ in stats), why))
    return garbage


def _old_checkpoints(
    attempts: "list[AttemptFolder]", files: Iterable[str]
) -> list[tuple[str, str]]:
    matches = filter(None, map(CHECKPOINT.match, files))
    steps = {(int(match["step"]), match["folder"]) for match in matches}
    why = f"{attempts[0].name} continues from a later checkpoint"
    return [(folder, why) for _, folder in sorted(steps, reverse=True)[KEPT_CHECKPOINTS:]]


def _local_disk() -> "AbstractFileSystem":
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()  # not by URL: a folder's name may have `::` in it


@cache
def open_remote(url: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system behind a URL, and the path of the store in it."""
    import fsspec

    # Listings must be fresh: other hosts write to the same store.
    files, base = fsspec.url_to_fs(url, use_listings_cache=False)
    return files, base.rstrip("/")


def _entries(files: "AbstractFileSystem", place: str) -> dict[str, dict[str, Any]]:
    """Name and details of each file below a place; empty where there is none."""
    files.invalidate_cache()
    found = files.find(place, detail=True)
    return {posixpath.relpath(name, files._strip_protocol(place)): found[name] for name in found}


def _download(files: "AbstractFileSystem", name: str, copy: Path) -> None:
    with atomic_write(copy) as draft:
        files.get_file(name, str(draft))


def _manifests_last(name: str) -> tuple[int, str]:
    """Sort key: manifests after all other files, the outermost folder's last."""
    is_manifest = name.rpartition("/")[2] == MANIFEST
    return (-name.count("/") if is_manifest else -1000), name

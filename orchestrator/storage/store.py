"""The store: one folder per attempt below one root, so that no attempt can touch another's files.

The database keeps folders relative to the root, so that a store can be moved. Results count only
once the database has accepted them; a folder by itself proves nothing. The root of an object store
is that of this host's copies, see `xsweep.orchestrator.storage.store`.

A store in an object store: every host works on copies of the folders that it needs.

The copies lie below a root of the host's own, at the same path on all hosts, which notes the URL of
the store. Jobs write to it as to any folder; `storage.store` takes up what is whole, the
manifest last of all, so that no half folder is ever read. A root without such a note is a folder
that all hosts see, and nothing here does anything.

What a job writes, taken to an object store while it works: whole files, the manifest last.
"""

import hashlib
import json
import logging
import os
import posixpath
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from xsweep.errors import DataError, SetupError, first_line
from xsweep.evaluator.data.files import NAME as MANIFEST
from xsweep.evaluator.data.files import atomic_write, checksum, read_manifest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


URL_FILE = ".remote"


RESULTS = ("summary.json", "provenance.json", "per_query.json")
"""What a controller reads of a finished folder."""


def mirror(url: str) -> Path:
    """The root of this host's copies of a remote store, made if need be.

    Raises SetupError where no package for the URL's scheme is installed or the store cannot be
    written.
    """
    if url.startswith("memory:"):
        raise SetupError(f"store {url}: what it holds is lost with the process that wrote it")
    root, url = copies_of(url), url.rstrip("/")
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        files, base = open_remote(url)
        files.pipe_file(f"{base}/{probe}", b"")
        files.rm_file(f"{base}/{probe}")
    except (ImportError, ValueError) as error:
        raise SetupError(
            f"store {url}: {error}; for s3:// install xsweep[s3], for others the package that "
            "fsspec names, or give a folder that every node sees"
        ) from error
    except Exception as error:  # every object store has errors of its own
        raise SetupError(
            f"store {url} cannot be written ({first_line(error)}): check its name, its endpoint "
            "and the credentials in the environment"
        ) from error
    return root


def attach(root: Path, url: str | None) -> None:
    """Makes a root that another host named a place for copies of a store; None: it is the store."""
    if url is not None and url_of(root) != url:
        with atomic_write(root / URL_FILE) as draft:
            draft.write_text(url)


def copies_of(url: str) -> Path:
    """The root of this host's copies of a remote store, which is not asked.

    Raises SetupError where it cannot be made, and for a URL with a password, without showing it.
    """
    if urlsplit(url).password:
        # A store's URL stands in messages, logs and tasks.
        raise SetupError(
            "the store's URL holds a password: leave it out; give credentials by the environment"
        )
    url = url.rstrip("/")
    home = os.environ.get("XSWEEP_CACHE") or f"{tempfile.gettempdir()}/xsweep-{os.getuid()}"
    root = Path(home, "stores", hashlib.sha256(url.encode()).hexdigest()[:16]).absolute()
    try:
        Path(home).mkdir(parents=True, exist_ok=True, mode=0o700)
        if Path(home).stat().st_uid != os.getuid():
            raise SetupError(f"{home} is another user's: choose a folder with XSWEEP_CACHE")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"{root} cannot be made ({error.strerror}): choose a folder with XSWEEP_CACHE"
        ) from error
    attach(root, url)
    return root


def url_of(root: Path) -> str | None:
    """The remote store whose copies lie below a root; None: the root itself is the store."""
    try:
        return (root / URL_FILE).read_text()
    except FileNotFoundError:
        return None


def fetch(root: Path, folder: str) -> Path:
    """This host's copy of a folder of the store, got where it is not here yet.

    A finished folder is got once, its manifest last; of an unfinished one (an earlier attempt's)
    what is there now and not here. Several processes may do so at once.
    """
    path, url = root / folder, url_of(root)
    if url is None or (path / MANIFEST).exists():
        return path
    files, base = open_remote(url)
    with asking(f"{url}/{folder}"):
        sizes = _sizes(files, f"{base}/{folder}")
        for name in sorted(sizes, key=manifests_last):
            copy = path / name
            if not copy.exists() or copy.stat().st_size != sizes[name]:
                _get(files, f"{base}/{folder}/{name}", copy)
    return path


def fetch_results(root: Path, folder: str) -> Path:
    """A folder with the manifest and the results of a finished folder, perhaps without the rest.

    Every file that the manifest lists is there with its size, and with its checksum where its bytes
    are at hand. Raises DataError where the folder is unfinished or a file is missing or damaged.
    """
    url = url_of(root)
    if url is None:
        read_manifest(root / folder)
        return root / folder
    files, base = open_remote(url)
    place = f"{base}/{folder}"
    with asking(f"{url}/{folder}"):
        sizes = _sizes(files, place)
        if MANIFEST not in sizes:
            raise DataError(f"{url}/{folder}: unfinished (it has no {MANIFEST}): run its job again")
        manifest = json.loads(files.cat_file(f"{place}/{MANIFEST}"))
        for name, entry in manifest["files"].items():
            if sizes.get(name) != entry["bytes"]:
                raise DataError(
                    f"{url}/{folder}/{name}: {sizes.get(name, 'missing')} where the manifest lists "
                    f"{entry['bytes']} bytes: run the job again"
                )
        path = root / ".results" / folder
        path.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, *RESULTS):
            if name in sizes:
                _get(files, f"{place}/{name}", path / name)
    for name in RESULTS:
        listed = manifest["files"].get(name)
        if listed and checksum(path / name) != listed["sha256"]:
            raise DataError(f"{url}/{folder}/{name}: damaged: run the job again")
    return path


def is_published(root: Path, folder: str) -> bool:
    """Whether a finished folder lies in the store."""
    url = url_of(root)
    if url is None:
        return (root / folder / MANIFEST).is_file()
    files, base = open_remote(url)
    with asking(f"{url}/{folder}"):
        return bool(files.exists(f"{base}/{folder}/{MANIFEST}"))


def fetch_file(root: Path, name: str) -> Path:
    """A file that still grows, such as a log, as far as it is in the store now."""
    url, path = url_of(root), root / name
    if url is None:
        return path
    files, base = open_remote(url)
    with asking(f"{url}/{name}"):
        if not files.exists(f"{base}/{name}"):
            return path
        copy = root / ".results" / name
        _get(files, f"{base}/{name}", copy)
    return copy


def remove(root: Path, folder: str) -> None:
    """Removes a folder from the store and from this host."""
    shutil.rmtree(root / folder, ignore_errors=True)
    if url := url_of(root):
        files, base = open_remote(url)
        files.rm(f"{base}/{folder}", recursive=True)


def listing(root: Path, folder: str) -> dict[str, tuple[int, float]]:
    """The files below a folder of the store: {name: (bytes, seconds since the epoch)}."""
    url = url_of(root)
    if url is None:
        stats = ((path, path.stat()) for path in (root / folder).rglob("*") if path.is_file())
        return {
            path.relative_to(root / folder).as_posix(): (stat.st_size, stat.st_mtime)
            for path, stat in stats
        }
    files, base = open_remote(url)
    with asking(f"{url}/{folder}"):
        found = _entries(files, f"{base}/{folder}")
    return {
        name: (
            entry["size"],
            entry["LastModified"].timestamp() if "LastModified" in entry else entry["mtime"],
        )
        for name, entry in found.items()
    }


def _sizes(files: "AbstractFileSystem", place: str) -> dict[str, int]:
    """Name and bytes of each file below a place; empty where there is none."""
    return {name: entry["size"] for name, entry in _entries(files, place).items()}


def _entries(files: "AbstractFileSystem", place: str) -> dict[str, dict[str, Any]]:
    """What the store tells of each file below a place, by its name there."""
    files.invalidate_cache()
    found = files.find(place, detail=True)
    return {posixpath.relpath(name, files._strip_protocol(place)): found[name] for name in found}


@cache
def open_remote(url: str) -> tuple["AbstractFileSystem", str]:
    """The file system behind a URL, and the place of the store in it."""
    import fsspec

    # Listings must be fresh: other hosts write to the same store.
    files, base = fsspec.url_to_fs(url, use_listings_cache=False)
    return files, base.rstrip("/")


@contextmanager
def asking(place: str) -> Iterator[None]:
    """Turns an object store's own errors into one of ours."""
    try:
        yield
    except (DataError, SetupError):
        raise
    except Exception as error:
        raise SetupError(f"{place}: the store does not answer ({first_line(error)})") from error


def _get(files: "AbstractFileSystem", name: str, copy: Path) -> None:
    """Gets a file so that it appears whole."""
    with atomic_write(copy) as draft:
        files.get_file(name, str(draft))


def manifests_last(name: str) -> tuple[int, str]:
    """Of all folders the outermost one's manifest comes last."""
    is_manifest = name.rpartition("/")[2] == MANIFEST
    return (-name.count("/") if is_manifest else -1000), name


def open_store(uri: str) -> Path:
    """The store's root, created if need be; SetupError if it cannot be written.

    A path or a `file://` URL, on a disk that every node of the cluster sees at the same place; or a
    URL that fsspec knows, such as `s3://bucket/folder`.
    """
    if is_remote(uri):
        pass

        return mirror(uri)
    root = store_root(uri)
    probe = root / f".probe-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"store {root} cannot be written ({error.strerror}): choose another folder with "
            "--store or XSWEEP_STORE"
        ) from error
    return root


def store_root(uri: str) -> Path:
    """The store's root, which is not looked at."""
    if is_remote(uri):
        pass

        return copies_of(uri)
    return Path(uri.removeprefix("file://")).absolute()


def is_remote(uri: str) -> bool:
    """Whether a store is in an object store, not in a folder."""
    return "://" in uri and not uri.startswith("file://")


def attempt_folder(kind: str, identity: str, token: int) -> str:
    """Where one attempt writes, relative to the root."""
    return f"jobs/{kind}/{identity[:2]}/{identity}/attempt-{token}"


def resolve(root: Path, folder: str) -> Path:
    """The absolute path of a stored folder; SetupError if it would leave the store."""
    path = Path(os.path.normpath(root / folder))
    if not path.is_relative_to(root):
        raise SetupError(f"{folder!r} lies outside the store {root}: the job table is damaged")
    return path


log = logging.getLogger(__name__)


SYNC_EVERY_S = 15.0


class Uploads:
    """What a job writes, taken to the store: whole files, new or changed since the last time."""

    def __init__(self, root: Path, folder: str | None, log_file: str | None) -> None:
        self._root, self._folder, self._log_file = root, folder, log_file
        self._files, base = open_remote(url_of(root) or "")
        self._base = base
        self._known: dict[str, tuple[int, int]] = {}

    def sync(self) -> None:
        """Takes up what is whole, and away what is gone; never the manifest."""
        seen: dict[str, tuple[int, int]] = {}
        for name in self._names():
            try:
                stat = (self._root / name).stat()
                seen[name] = stat.st_size, stat.st_mtime_ns
                if self._known.get(name) != seen[name]:
                    self._files.put_file(str(self._root / name), f"{self._base}/{name}")
            except FileNotFoundError:  # a checkpoint that was replaced meanwhile
                seen.pop(name, None)
        for gone in self._known.keys() - seen.keys():
            with suppress(FileNotFoundError):
                self._files.rm_file(f"{self._base}/{gone}")
        self._known = seen

    def finish(self) -> None:
        """Takes up the rest and closes the folder: from here on it is finished for all hosts."""
        self.sync()
        if self._folder is None:
            return
        manifest = f"{self._folder}/{MANIFEST}"
        if (self._root / manifest).exists():
            self._files.put_file(str(self._root / manifest), f"{self._base}/{manifest}")

    def _names(self) -> Iterator[str]:
        if self._log_file and (self._root / self._log_file).exists():
            yield self._log_file
        if self._folder is None:
            return
        folder = self._root / self._folder
        inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        # What is being written is hidden or called .part, itself or its folder.
        whole = [
            path.as_posix()
            for path in inside
            if not any(part.startswith(".") or part.endswith(".part") for part in path.parts)
        ]
        for name in sorted(whole, key=manifests_last):
            if name != MANIFEST:
                yield f"{self._folder}/{name}"


def publish(root: Path, folder: str) -> None:
    """Takes a finished folder to the store."""
    if url := url_of(root):
        with asking(f"{url}/{folder}"):
            Uploads(root, folder, None).finish()


@contextmanager
def uploading(
    root: Path, folder: str | None, log_file: str, every_s: float = SYNC_EVERY_S
) -> Iterator[None]:
    """Takes a job's files to the store while it works, and all of them however it ends.

    Without a folder the log alone. The manifest goes up only where the job wrote one. An upload
    that fails while the job works is tried again; one that fails at its end raises.
    """
    if url_of(root) is None:
        yield
        return
    uploads, ended = Uploads(root, folder, log_file), threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            try:
                uploads.sync()
            except Exception as error:  # the next round, or the end, says it for good
                log.warning("not taken to the store yet: %s", first_line(error))

    thread = threading.Thread(target=repeat, name="uploads", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with asking(f"{url_of(root)}/{folder}"):
            uploads.finish()

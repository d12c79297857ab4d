"""A store in an object store: every host works on copies of the folders that it needs.

The copies lie below a root of the host's own, at the same path on all hosts, which notes the URL of
the store. Jobs write to it as to any folder; what is whole goes up while they work (checkpoints,
logs), the manifest last of all, so that no half folder is ever read. A root without such a note is
a folder that all hosts see, and nothing here does anything.
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
from typing import TYPE_CHECKING

from evaluator.files import checksum
from evaluator.manifest import NAME as MANIFEST
from evaluator.manifest import read_manifest
from xsweep import DataError, SetupError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

URL_FILE = ".remote"
RESULTS = ("summary.json", "provenance.json", "per_query.json")
"""What a controller reads of a finished folder."""
SYNC_EVERY_S = 15.0


def mirror(url: str) -> Path:
    """The root of this host's copies of a remote store, made if need be.

    Raises SetupError where no package for the URL's scheme is installed or the store cannot be
    written.
    """
    root, url = copies_of(url), url.rstrip("/")
    if url.startswith("memory:"):
        raise SetupError(f"store {url}: what it holds is lost with the process that wrote it")
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        files, base = _open(url)
        files.pipe_file(f"{base}/{probe}", b"")
        files.rm_file(f"{base}/{probe}")
    except (ImportError, ValueError) as error:
        raise SetupError(
            f"store {url}: {error}; for s3:// install xsweep[s3], for others the package that "
            "fsspec names, or give a folder that every node sees"
        ) from error
    except Exception as error:  # every object store has errors of its own
        raise SetupError(
            f"store {url} cannot be written ({_first_line(error)}): check its name, its endpoint "
            "and the credentials in the environment"
        ) from error
    return root


def attach(root: Path, url: str | None) -> None:
    """Makes a root that another host named a place for copies of a store; None: it is the store."""
    if url is not None and url_of(root) != url:
        root.mkdir(parents=True, exist_ok=True)
        draft = root / f"{URL_FILE}.{uuid.uuid4().hex}"
        draft.write_text(url)
        draft.replace(root / URL_FILE)


def copies_of(url: str) -> Path:
    """The root of this host's copies of a remote store, which is not asked."""
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
    files, base = _open(url)
    with _asking(f"{url}/{folder}"):
        sizes = _listed(files, f"{base}/{folder}")
        for name in sorted(sizes, key=_manifests_last):
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
    files, base = _open(url)
    place = f"{base}/{folder}"
    with _asking(f"{url}/{folder}"):
        sizes = _listed(files, place)
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
    files, base = _open(url)
    with _asking(f"{url}/{folder}"):
        return bool(files.exists(f"{base}/{folder}/{MANIFEST}"))


def fetch_file(root: Path, name: str) -> Path:
    """A file that still grows, such as a log, as far as it is in the store now."""
    url, path = url_of(root), root / name
    if url is None:
        return path
    files, base = _open(url)
    with _asking(f"{url}/{name}"):
        if not files.exists(f"{base}/{name}"):
            return path
        copy = root / ".results" / name
        _get(files, f"{base}/{name}", copy)
    return copy


def remove(root: Path, folder: str) -> None:
    """Removes a folder from the store and from this host."""
    shutil.rmtree(root / folder, ignore_errors=True)
    if url := url_of(root):
        files, base = _open(url)
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
    files, base = _open(url)
    place = f"{base}/{folder}"
    with _asking(f"{url}/{folder}"):
        found = files.find(place, detail=True)
    return {
        posixpath.relpath(name, files._strip_protocol(place)): (
            entry["size"],
            entry["LastModified"].timestamp() if "LastModified" in entry else entry["mtime"],
        )
        for name, entry in found.items()
    }


class Uploads:
    """What a job writes, taken to the store: whole files, new or changed since the last time."""

    def __init__(self, root: Path, folder: str | None, log_file: str | None) -> None:
        self._root, self._folder, self._log_file = root, folder, log_file
        self._files, base = _open(url_of(root) or "")
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
        for name in sorted(whole, key=_manifests_last):
            if name != MANIFEST:
                yield f"{self._folder}/{name}"


def publish(root: Path, folder: str) -> None:
    """Takes a finished folder to the store."""
    if url := url_of(root):
        with _asking(f"{url}/{folder}"):
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
                log.warning("not taken to the store yet: %s", _first_line(error))

    thread = threading.Thread(target=repeat, name="uploads", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with _asking(f"{url_of(root)}/{folder}"):
            uploads.finish()


def _listed(files: "AbstractFileSystem", place: str) -> dict[str, int]:
    """Name and bytes of each file below a place; empty where there is none."""
    files.invalidate_cache()
    stripped = files._strip_protocol(place)
    found = files.find(place, detail=True)
    return {posixpath.relpath(name, stripped): entry["size"] for name, entry in found.items()}


@cache
def _open(url: str) -> tuple["AbstractFileSystem", str]:
    import fsspec

    # Listings must be fresh: other hosts write to the same store.
    files, base = fsspec.url_to_fs(url, use_listings_cache=False)
    return files, base.rstrip("/")


@contextmanager
def _asking(place: str) -> Iterator[None]:
    """Turns an object store's own errors into one of ours."""
    try:
        yield
    except (DataError, SetupError):
        raise
    except Exception as error:
        raise SetupError(f"{place}: the store does not answer ({_first_line(error)})") from error


def _get(files: "AbstractFileSystem", name: str, copy: Path) -> None:
    """Gets a file so that it appears whole."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    draft = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
    try:
        files.get_file(name, str(draft))
        draft.replace(copy)
    finally:
        draft.unlink(missing_ok=True)


def _manifests_last(name: str) -> tuple[int, str]:
    """Of all folders the outermost one's manifest comes last."""
    is_manifest = name.rpartition("/")[2] == MANIFEST
    return (-name.count("/") if is_manifest else -1000), name


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

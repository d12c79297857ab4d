"""What a job writes, taken to an object store while it works: whole files, the manifest last."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evaluator.manifest import NAME as MANIFEST
from orchestrator.remote import asking, manifests_last, open_remote, url_of
from xsweep import first_line

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

"""The store: one folder per attempt below one root, so that no attempt can touch another's files.

The database keeps folders relative to the root, so that a store can be moved. Results count only
once the database has accepted them; a folder by itself proves nothing. The root of an object store
is that of this host's copies, see `orchestrator.remote`.
"""

import os
import uuid
from pathlib import Path

from xsweep import SetupError


def open_store(uri: str) -> Path:
    """The store's root, created if need be; SetupError if it cannot be written.

    A path or a `file://` URL, on a disk that every node of the cluster sees at the same place; or a
    URL that fsspec knows, such as `s3://bucket/folder`.
    """
    if is_remote(uri):
        from orchestrator.remote import mirror

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
        from orchestrator.remote import copies_of

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

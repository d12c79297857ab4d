"""The list of a finished folder's files with their checksums, written last.

A folder without `manifest.json` is unfinished and is never read: the atomic rename of that one
file is what makes a result appear whole.
"""

import json
from pathlib import Path

from evaluator.files import atomic_write, checksum
from xsweep import DataError

NAME = "manifest.json"


def write_manifest(folder: Path) -> dict:
    """Closes a folder: lists every file below it and returns {"files": {name: {sha256, bytes}}}."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": checksum(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    manifest = {"files": files}
    with atomic_write(folder / NAME) as draft:
        draft.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether the folder was closed; its files are not looked at."""
    return (folder / NAME).is_file()


def read_manifest(folder: Path) -> dict:
    """The manifest, after checking that every file is there with its size and checksum.

    Raises DataError where the folder is unfinished or differs from its manifest.
    """
    try:
        files = json.loads((folder / NAME).read_text())["files"]
        declared = {name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise DataError(f"{folder}: unfinished (it has no {NAME}): run its job again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / NAME}: not a manifest: run the job again") from error
    for name, (sha256, size_bytes) in declared.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing, though the manifest lists it: run the job again")
        if path.stat().st_size != size_bytes or checksum(path) != sha256:
            raise DataError(f"{path}: damaged, it differs from the manifest: run the job again")
    return {"files": files}

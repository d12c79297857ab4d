"""An archive as one file: a folder packed into .tar.gz or .zip, and safely unpacked again."""

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xsweep import ConfigError, DataError

FORMATS = {".tar.gz": "gztar", ".tgz": "gztar", ".zip": "zip"}
"""Endings of file names, and what shutil calls them."""


def ending_of(path: Path) -> str | None:
    """The ending that says that a path is one file; None for a folder."""
    return next((ending for ending in FORMATS if path.name.endswith(ending)), None)


@contextmanager
def to_pack(path: Path) -> Iterator[Path]:
    """A folder to fill: the path itself or, where its name says so, one that is packed into it.

    A reader sees the whole file or none. Raises ConfigError where the file is there already.
    """
    ending = ending_of(path)
    if ending is None:
        yield path
        return
    if path.exists():
        raise ConfigError(f"{path} is there already: give a new name")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    root = path.name.removesuffix(ending)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{root}-") as work:
        yield Path(work, root)
        draft = shutil.make_archive(str(Path(work, "packed")), FORMATS[ending], work, root)
        Path(draft).replace(path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of an archive; a packed one is unpacked to a temporary place.

    Raises DataError where the file is damaged or a name in it leads out of its folder.
    """
    ending = ending_of(path)
    if ending is None or path.is_dir():
        yield path
        return
    kind = FORMATS[ending]
    with tempfile.TemporaryDirectory(prefix="xsweep-import-") as work:
        try:
            # of a zip file it leaves out by itself what leads out
            shutil.unpack_archive(path, work, kind, filter=None if kind == "zip" else "data")
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}): get it again") from error
        folders = [each for each in Path(work).iterdir() if each.is_dir()]
        if len(folders) != 1:
            raise DataError(f"{path}: not an archive of xsweep: it holds {len(folders)} folders")
        yield folders[0]

"""Files: read line by line, verified by checksum, written reproducibly and atomically.

A finished folder has a `manifest.json`, the list of its files with their checksums. A folder
without one is unfinished and never read: the atomic rename of that file publishes a result.
"""

import codecs
import gzip
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xsweep.errors import DataError, first_line
from xsweep.evaluator.specs import HUB, FileSpec

MANIFEST = "manifest.json"


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, unpacked if its name ends in .gz, without a byte order mark.

    Raises DataError with `file:line` if the file is missing, empty, cut off or packed otherwise.
    """
    refuse_packed(path)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}:{number + 1}: damaged gzip file ({error}): get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if number == 0:
        raise DataError(f"{path}: the file is empty")


def refuse_packed(path: Path) -> None:
    """Raise DataError for a compressed file that is not gzipped."""
    if path.suffix in (".bz2", ".xz", ".zst", ".lz4", ".zip"):
        raise DataError(f"{path}: unpack this file, or pack it with gzip: only .gz is read packed")


def columns_of(line: str) -> list[str]:
    """The columns of a line: between its tabs if it has any, else between its ASCII blanks.

    `"q1\tmy doc\t1"` has `my doc`; a no-break space separates nothing.
    """
    if "\t" in line:
        return [column.strip(" \r\n") for column in line.split("\t")]
    return line.split() if line.isascii() else [part.decode() for part in line.encode().split()]


def decode(field: bytes, place: str) -> str:
    """A field as text. Raises DataError if it is not UTF-8; `place` is its `file:line`."""
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {field[:80]!r} is not UTF-8: convert the file") from error


@contextmanager
def write_text(path: Path) -> Iterator[Callable[[str], object]]:
    """Gives a function that writes text to `path`; equal text gives equal bytes, also gzipped."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file.write
        return
    with (
        path.open("wb") as raw,
        # The name and the time in a gzip header would make every copy differ.
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
    ):
        yield lambda line: packed.write(line.encode())


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a draft's path beside `path`, for a file or a folder that replaces `path` at the end.

    Readers see all of it or nothing, even if this process is killed. If the block raises, the
    draft is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield draft
        draft.replace(path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)


def link(source: Path | str, target: Path | str) -> None:
    """Links a file where the disk can, which takes no room; else copies it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The hex digest of a file's bytes; algorithm is `sha256` or `md5`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def parquet_files(path: Path) -> list[Path]:
    """The files of a path: itself, those of a pattern (`*/train-*.parquet`), or of a folder."""
    for place, part in enumerate(path.parts):
        if "*" in part:
            return sorted(Path(*path.parts[:place]).glob("/".join(path.parts[place:])))
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def checksum_of(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, or one over those of several Parquet files."""
    files = parquet_files(path)
    if files == [path]:
        return checksum(path, algorithm)
    return combined(f"{file.name} {checksum(file, algorithm)}" for file in files)


def from_hub(path: str, download: bool = True) -> tuple[str, Path]:
    """A path on the Hugging Face Hub with its commit, and the local copy of its files.

    Without a download the commit is found, in the local cache if the hub cannot be reached. Raises
    DataError if that fails.
    """
    from huggingface_hub import snapshot_download

    try:
        org, name, *inside = path.removeprefix(HUB).rstrip("/").split("/")
        name, _, revision = name.partition("@")
        folder = "/".join(inside)
        patterns = [folder, f"{folder}/*"] if folder else ["*"]
        found = snapshot_download(
            f"{org}/{name}",
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=patterns if download else ["-"],
        )
    except (OSError, ValueError) as error:  # its own errors are of these classes
        raise DataError(f"{path}: cannot be fetched: {first_line(error)}") from error
    pinned = "/".join((f"{HUB}{org}", f"{name}@{Path(found).name}", *inside))
    return pinned, Path(found) / folder


def checked(file: FileSpec) -> Path:
    """The path of a declared file, fetched from the hub if it is there.

    Raises DataError if its checksum differs.
    """
    path = from_hub(file.path)[1] if file.path.startswith(HUB) else Path(file.path)
    for algorithm, declared in (("md5", file.md5), ("sha256", file.sha256)):
        if declared and (found := checksum_of(path, algorithm)) != declared:
            raise DataError(
                f"{path}: {algorithm} is {found}, declared is {declared}: "
                "the file was changed or is another one"
            )
    return path


def plain_or_gz(path: Path) -> Path:
    """`path`, or `path`.gz if only that one exists."""
    packed = path.with_name(path.name + ".gz")
    return packed if not path.exists() and packed.exists() else path


def tree_sha256(folder: Path) -> str:
    """One checksum of all files below a folder, by relative name; hidden ones are left out."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    visible = (name for name in names if not any(p.startswith(".") for p in name.split("/")))
    return combined(f"{name} {checksum(folder / name)}" for name in visible)


def combined(lines: Iterable[str]) -> str:
    """One checksum of several lines, such as checksums."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(folder: Path) -> dict:
    """Marks a folder as finished; returns {"files": {name: {sha256, bytes}}} of all files below."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": checksum(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    manifest = {"files": files}
    with atomic_write(folder / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        # safetensors writes files that only their owner can read, whatever the umask
        with suppress(PermissionError):  # some network file systems have no modes
            for name in files:
                (folder / name).chmod(draft.stat().st_mode)
    return manifest


def is_finished(folder: Path) -> bool:
    """Tests for a manifest; the files themselves are not checked."""
    return (folder / MANIFEST).is_file()


_AGAIN = (
    ": restore it from a backup (`xsweep store check` lists all such files), or compute the result "
    "and those that depend on it again: xsweep redo JOB"
)


def read_manifest(folder: Path) -> dict:
    """The manifest, after checking that every file is present with its size and checksum.

    Raises DataError if the folder is unfinished or differs from its manifest.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        declared = {name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: unfinished (it has no {MANIFEST}): run its job again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: not a manifest: run the job again") from error
    for name, (sha256, size_bytes) in declared.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing, though the manifest lists it{_AGAIN}")
        if path.stat().st_size != size_bytes or checksum(path) != sha256:
            raise DataError(f"{path}: damaged, it differs from the manifest{_AGAIN}")
    return {"files": files}

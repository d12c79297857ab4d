"""Data files: read with line numbers, checked against their checksum, written reproducibly."""

import codecs
import gzip
import hashlib
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluator.specs import FileSpec
from xsweep import DataError


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, unpacked where its name ends in .gz, without a byte order mark.

    Raises DataError with `file:line` where the file is missing, empty or cut off.
    """
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


def text(field: bytes, place: str) -> str:
    """A field as text. Raises DataError where it is not UTF-8; `place` is its `file:line`."""
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {field[:80]!r} is not UTF-8: convert the file") from error


@contextmanager
def write_text(path: Path) -> Iterator[Callable[[str], object]]:
    """Gives a function that writes text to `path`; the same text makes the same bytes, gz too."""
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
    """A draft beside `path`, to be made a file or a folder, which becomes `path` at the end.

    A reader sees all of it or nothing, whoever is killed. Where the block raises, the draft is
    removed.
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


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The hex digest of a file's bytes; algorithm is `sha256` or `md5`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def checked(file: FileSpec) -> Path:
    """The path of a declared file. Raises DataError where its checksum is another."""
    path = Path(file.path)
    for algorithm, declared in (("md5", file.md5), ("sha256", file.sha256)):
        if declared and (found := checksum(path, algorithm)) != declared:
            raise DataError(
                f"{path}: {algorithm} is {found}, declared is {declared}: "
                "the file was changed or is another one"
            )
    return path


def either(path: Path) -> Path:
    """`path`, or `path`.gz where only that one exists."""
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

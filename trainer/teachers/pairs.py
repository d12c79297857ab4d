"""Finished (query, positive, negative) pairs, one for each line, in files of any size.

The file stays on disk. Memory holds the start of every 16th line (half a byte for each line); a
line is found by reading its block of 16.
"""

import gzip
import os
import tempfile
import zlib
from collections.abc import Container, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from xsweep.errors import DataError
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.files import refuse_packed
from xsweep.trainer.teachers import Sample
from xsweep.trainer.teachers.formats import PairFile, Source

LARGEST = float(np.finfo(np.float32).max)
LABELS = np.array((1, 0), dtype=np.float32)
MISMATCH = ": pairs and collection must belong together"
CHUNK_BYTES = 1 << 24
STRIDE = 16


class Lines:
    """Lines by number, without line ends; read from the file on each access."""

    def __init__(self, file: IO[bytes]) -> None:
        """Reads the file once and keeps it open."""
        self._file = file
        self._starts, self._count = _index(file)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        block, place = divmod(number, STRIDE)
        start, end = int(self._starts[block]), int(self._starts[block + 1])
        # The pages that pread reads count as the system's cache; mapped, they would count as ours.
        lines = os.pread(self._file.fileno(), end - start, start)
        return lines.split(b"\n", place + 1)[place]


def _index(file: IO[bytes]) -> tuple[np.ndarray, int]:
    """The starts of every 16th line and the file's end (int64), and the number of lines."""
    parts, size, ends_before, last = [np.zeros(1, dtype=np.int64)], 0, 0, b"\n"
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
        # The n-th line end of the file, counted from 1, is followed by line n.
        parts.append(ends[-(ends_before + 1) % STRIDE :: STRIDE] + size + 1)
        ends_before, size, last = ends_before + len(ends), size + len(chunk), chunk[-1:]
    starts = np.concatenate(parts)
    count = ends_before + (last != b"\n")
    # If the file ends with a 16th line, its end is already among the starts.
    kept = starts[: -(-count // STRIDE)]
    return np.append(kept, size), count


def open_lines(path: Path) -> Lines:
    """The lines of a file, unpacked to a temporary one if its name ends in .gz.

    Raises DataError if it cannot be read or its compression is damaged.
    """
    refuse_packed(path)
    try:
        if path.suffix != ".gz":
            return Lines(path.open("rb"))
        with gzip.open(path) as packed:
            return keep_lines(iter(lambda: packed.read(CHUNK_BYTES), b""))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def keep_lines(parts: Iterable[bytes]) -> Lines:
    """The lines of a text, given in parts, which a temporary file stores."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the lines
    file.writelines(parts)
    file.flush()
    return Lines(file)


def open_pairs(source: Source, collection: Collection, documents: Container[str]) -> "PairTeacher":
    """Opens the teacher over a file of pairs. Raises DataError if the file cannot be read."""
    return PairTeacher(source.read(), collection.queries or documents, documents)


class PairTeacher:
    """Draws the pairs of a file, one for each line."""

    uses_chance = False

    def __init__(self, file: PairFile, queries: Any, documents: Container[str]) -> None:
        """Raises DataError if the file is empty or cannot be read."""
        self.file, self.queries, self.documents = file, queries, documents
        self.lines = (
            open_lines(file.lines) if isinstance(file.lines, Path) else keep_lines(file.lines)
        )
        if not len(self.lines):
            raise DataError(f"{file.name}: the file holds no pairs")
        self.counts = {"lines": len(self.lines)}

    def __len__(self) -> int:
        return len(self.lines)

    def draw(self, unit: int, generator: np.random.Generator | None = None) -> Sample:
        """The pair of a line; the generator is not used.

        Raises DataError with `file:line` if the line is malformed or an id is unknown.
        """
        line = self.lines[unit]
        try:
            query_id, positive, negative, scores = self.file.parse(line.decode())
            doc_ids = (positive,) if negative is None else (positive, negative)
            labels_D = targets_D = LABELS[: len(doc_ids)]
            if scores:
                if not all(-LARGEST <= score <= LARGEST for score in scores):
                    raise ValueError
                targets_D = np.array(scores, dtype=np.float32)
        except ValueError:
            expected = self.file.expected
            raise self._error(unit, f"expected {expected}, found {line[:80]!r}") from None
        if query_id not in self.queries:
            raise self._error(unit, f"the collection has no query {query_id!r}{MISMATCH}")
        for doc_id in doc_ids:
            if doc_id not in self.documents:
                raise self._error(unit, f"the collection has no document {doc_id!r}{MISMATCH}")
        return Sample(query_id, doc_ids, targets_D, labels_D)

    def _error(self, unit: int, problem: str) -> DataError:
        return DataError(f"{self.file.name}:{unit + 1}: {problem}")

"""Sources whose lines are finished (query, positive, negative) pairs, of any size.

Only the offset of each line is kept (8 bytes a line); the file itself is memory-mapped and read
in shuffled order as samples are drawn. Packed files are unpacked to a temporary file first.
"""

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from evaluator.collections import Collection
from evaluator.files import checked, read_lines
from trainer.specs import DocpairsSource, ScoreTriplesSource, Source, TriplesSource
from trainer.teachers import Sample
from xsweep import ConfigError, DataError

CHUNK_BYTES = 1 << 24


def open_pairs(source: Source, collection: Collection) -> "PairTeacher":
    """The teacher over a file of pairs. Raises DataError where there is no such file."""
    if isinstance(source, DocpairsSource):
        file = _unpacked(_docpairs(source.id))
        return PairTeacher(file, source.id, collection.queries, scored=False)
    if not isinstance(source, TriplesSource | ScoreTriplesSource):
        raise ConfigError(f"a {source.type!r} source holds no pairs")
    path = checked(source.file)
    file = _unpacked(read_lines(path)) if path.suffix == ".gz" else _opened(path)
    scored = isinstance(source, ScoreTriplesSource)
    return PairTeacher(file, str(path), collection.queries, scored=scored)


class PairTeacher:
    """Draws lines `query, positive, negative`, or `scored` ones that begin with two scores."""

    def __init__(self, file: IO[bytes], name: str, queries: dict[str, str], scored: bool) -> None:
        """Takes the file over. `name` is what errors call it."""
        self.name, self.queries, self.scored = name, queries, scored
        self.starts = line_starts(file)
        if not len(self):
            raise DataError(f"{name}: the file holds no pairs")
        self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.counts = {"lines": len(self)}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def draw(self, unit: int, generator: np.random.Generator) -> Sample:
        """The pair of a line; nothing is left to chance. Raises DataError where it is malformed."""
        line = self.text[self.starts[unit] : self.starts[unit + 1]].decode(errors="replace")
        fields = line.split()
        try:
            *scores, query_id, positive, negative = fields
            targets_D = np.array(scores if self.scored else (1, 0), dtype=np.float32)
            if len(scores) != 2 * self.scored or not np.isfinite(targets_D).all():
                raise ValueError
        except ValueError:
            form = "two scores, then " if self.scored else ""
            raise DataError(
                f"{self.name}:{unit + 1}: expected {form}query, positive and negative id, "
                f"found {line.strip()[:80]!r}"
            ) from None
        if query_id not in self.queries:
            raise DataError(
                f"{self.name}:{unit + 1}: the collection has no query {query_id!r}: "
                "pairs and collection must belong together"
            )
        return Sample(query_id, (positive, negative), targets_D)


def line_starts(file: IO[bytes]) -> np.ndarray:
    """int64[lines + 1]: where each line begins, and the end of the file."""
    parts, position, last = [np.zeros(1, dtype=np.int64)], 0, b""
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
        parts.append(ends + position + 1)
        position, last = position + len(chunk), chunk[-1:]
    if last not in (b"", b"\n"):
        parts.append(np.array([position], dtype=np.int64))
    return np.concatenate(parts)


def _docpairs(dataset_id: str) -> Iterator[bytes]:
    import ir_datasets

    try:
        for pair in ir_datasets.load(dataset_id).docpairs_iter():
            yield f"{pair.query_id}\t{pair.doc_id_a}\t{pair.doc_id_b}\n".encode()
    except Exception as error:  # its loaders and the network raise nearly anything
        raise DataError(f"{dataset_id}: ir_datasets gives no docpairs: {error}") from error


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _unpacked(lines: Iterable[bytes]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the teacher keeps it open
    file.writelines(lines)
    file.flush()
    return file

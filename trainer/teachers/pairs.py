"""Sources whose lines are finished (query, positive, negative) pairs, of any size."""

from collections.abc import Container
from pathlib import Path

import numpy as np

from evaluator.collections import Collection
from evaluator.files import checked
from trainer.teacher_specs import DocpairsSource, ScoreTriplesSource, Source, TriplesSource
from trainer.teachers import Sample
from trainer.teachers.lines import Lines, keep_lines, open_lines
from xsweep import ConfigError, DataError

LARGEST = float(np.finfo(np.float32).max)
LABELS = np.array((1, 0), dtype=np.float32)


def open_pairs(source: Source, collection: Collection, documents: Container[str]) -> "PairTeacher":
    """The teacher over a file of pairs. Raises DataError where there is no such file."""
    scored = isinstance(source, ScoreTriplesSource)
    if isinstance(source, DocpairsSource):
        name, lines = source.id, _docpairs(source.id)
    elif isinstance(source, TriplesSource | ScoreTriplesSource):
        path = checked(source.file)
        name, lines = str(path), open_lines(path)
    else:
        raise ConfigError(f"a {source.type!r} source holds no pairs")
    return PairTeacher(lines, name, collection.queries, documents, scored=scored)


class PairTeacher:
    """Draws lines `query, positive, negative`, or `scored` ones that begin with two scores."""

    uses_chance = False

    def __init__(
        self,
        lines: Lines,
        name: str,
        queries: dict[str, str],
        documents: Container[str],
        scored: bool,
    ) -> None:
        """`name` is what errors call the file. Raises DataError where it is empty."""
        self.lines, self.name, self.scored = lines, name, scored
        self.queries, self.documents = queries, documents
        if not len(lines):
            raise DataError(f"{name}: the file holds no pairs")
        self.counts = {"lines": len(lines)}

    def __len__(self) -> int:
        return len(self.lines)

    def draw(self, unit: int, generator: np.random.Generator | None = None) -> Sample:
        """The pair of a line; nothing is left to chance.

        Raises DataError with `file:line` where the line is malformed or an id is unknown.
        """
        line = self.lines[unit]
        try:
            *scores, query_id, positive, negative = line.decode().split()
            if len(scores) != 2 * self.scored:
                raise ValueError
            targets_D = LABELS
            if self.scored:
                high, low = float(scores[0]), float(scores[1])
                if not (-LARGEST <= high <= LARGEST and -LARGEST <= low <= LARGEST):
                    raise ValueError
                targets_D = np.array((high, low), dtype=np.float32)
        except ValueError:
            form = "two scores, then " if self.scored else ""
            raise self._error(
                unit, f"expected {form}query, positive and negative id, found {line[:80]!r}"
            ) from None
        if query_id not in self.queries:
            raise self._error(unit, f"the collection has no query {query_id!r}")
        if positive not in self.documents or negative not in self.documents:
            unknown = negative if positive in self.documents else positive
            raise self._error(unit, f"the collection has no document {unknown!r}")
        return Sample(query_id, (positive, negative), targets_D, LABELS)

    def _error(self, unit: int, what: str) -> DataError:
        hint = ": pairs and collection must belong together" if "the collection" in what else ""
        return DataError(f"{self.name}:{unit + 1}: {what}{hint}")


def _docpairs(dataset_id: str) -> Lines:
    """The docpairs of a data set, by the file they are kept in where it has such lines."""
    import ir_datasets
    from ir_datasets.formats import TsvDocPairs

    try:
        pairs = ir_datasets.load(dataset_id).docpairs_handler()
        # An hour of unpacking line by line for MS MARCO's 270 million, or a minute at once.
        path = Path(pairs.docpairs_path()) if type(pairs) is TsvDocPairs else None
        if path and path.suffix in (".gz", ".tsv"):
            return open_lines(path)
        return keep_lines(
            f"{pair.query_id}\t{pair.doc_id_a}\t{pair.doc_id_b}\n".encode()
            for pair in pairs.docpairs_iter()
        )
    except DataError:
        raise
    except Exception as error:  # its loaders and the network raise nearly anything
        raise DataError(f"{dataset_id}: ir_datasets gives no docpairs: {error}") from error

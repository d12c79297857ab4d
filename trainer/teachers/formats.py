"""Formats of a teacher's signal: the source that a specification names, and its reader.

A format is a `Source` class with its own `type`. It reads a ranked list for each query (`ListFile`)
or finished pairs (`PairFile`). If the source is a file, its type is also the key for that file in a
grid.

Planning a grid imports this module, so it imports no NumPy; `lists` and `pairs` draw the samples.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.files import checked, columns_of, decode, read_lines
from xsweep.evaluator.data.readers import read_records
from xsweep.evaluator.data.trec import run_lines
from xsweep.evaluator.specs import FileSpec, Spec
from xsweep.trainer.objectives import Signal


class Entry(NamedTuple):
    """A document in a query's list."""

    line: int
    query_id: str
    doc_id: str
    value: float
    """Higher is better."""


class ListFile(NamedTuple):
    """A ranked list for each query; entries come in any order."""

    path: Path
    entries: Iterable[Entry]
    by_rank: bool = False
    """True if the values are negated ranks; a list's n documents then score n to 1."""


class Pair(NamedTuple):
    """A query with a better and a worse document."""

    query_id: str
    positive: str
    negative: str
    scores: tuple[float, float] | None = None
    """Scores of both documents; None for labels."""


class PairFile(NamedTuple):
    """Finished pairs, one for each line."""

    name: str
    """Name of the file in error messages."""
    lines: Path | Iterable[bytes]
    parse: Callable[[str], Pair]
    """Parses one line; raises ValueError if it is malformed."""
    expected: str
    """The parts of a line in error messages."""


FORMATS: dict[str, type[Source]] = {}
"""Formats by the `type` of their sources."""
FILE_KEYS: dict[str, str] = {}
"""Grid keys of the formats that are files, with the first paragraph of the source's docstring."""


class Source(Spec):
    """Base class of all sources."""

    type: str
    signals: ClassVar[tuple[Signal, ...]] = ()
    """Signals that the format can give."""
    pairs: ClassVar[bool] = False
    """True for finished pairs, which leave nothing to sample."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls.signals:
            name = cls.model_fields["type"].default
            FORMATS[name] = cls
            if issubclass(cls, FileSource):
                FILE_KEYS[name] = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]

    def read(self, *_: Any, **__: Any) -> Any:
        """`read() -> PairFile` for finished pairs, else `read(signal, inputs) -> ListFile`."""
        raise NotImplementedError


class FileSource(Source):
    """Base class of sources that are one file."""

    file: FileSpec


def _input(inputs: Mapping[str, Path], role: str) -> Path:
    if role not in inputs:
        raise ConfigError(f"this teacher needs the input {role!r}: name its folder in `inputs`")
    return Path(inputs[role])


def _trec(path: Path, order: Literal["score", "rank"] = "score") -> ListFile:
    entries = itertools.starmap(Entry, run_lines(path, order))
    return ListFile(path, entries, by_rank=order == "rank")


class CandidatesSource(Source):
    """Labels over the `candidates` input: positives from the qrels, negatives from the ranking."""

    type: Literal["candidates"] = "candidates"
    signals = ("labels",)

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        return _trec(_input(inputs, "candidates") / "candidates.run.gz")


class TeachSource(Source):
    """Scores of a `teach` job, whose folder is the input `teacher`."""

    type: Literal["teach"] = "teach"
    signals = ("scores", "ranking")

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        return _trec(_input(inputs, "teacher") / "scores.run.gz")


class RunSource(FileSource):
    """A TREC run: as a ranking, as scores, or as the pool of negatives for labels."""

    type: Literal["run"] = "run"
    order: Literal["rank", "score"] = "score"
    """The column that orders a list: in some published runs the other one has ties or differs."""
    signals = ("labels", "scores", "ranking")

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        return _trec(checked(self.file), self.order)


class ScoresSource(FileSource):
    """Lines `query id <TAB> document id <TAB> score`."""

    type: Literal["scores"] = "scores"
    signals = ("scores", "ranking")

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        path = checked(self.file)
        return ListFile(path, _score_lines(path))


def _score_lines(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(read_lines(path), 1):
        fields = columns_of(decode(line, f"{path}:{number}"))
        try:
            query_id, doc_id, score = fields
            value = float(score)
        except ValueError:
            raise DataError(
                f"{path}:{number}: expected a query id, a document id and a score, found {fields}"
            ) from None
        if not abs(value) < float("inf"):
            raise DataError(f"{path}:{number}: the score {score} is not a finite number")
        yield Entry(number, query_id, doc_id, value)


class TriplesSource(FileSource):
    """Lines `query id <TAB> positive id <TAB> negative id` (MS MARCO's triples)."""

    type: Literal["triples"] = "triples"
    signals = ("labels",)
    pairs = True

    def read(self) -> PairFile:
        path = checked(self.file)
        return PairFile(str(path), path, _triple, TRIPLE)


TRIPLE = "query, positive and negative id"


def _triple(line: str) -> Pair:
    query_id, positive, negative = columns_of(line)
    return Pair(query_id, positive, negative)


class DocpairsSource(Source):
    """The docpairs of an ir_datasets dataset, e.g. `msmarco-passage/train/triples-small`."""

    type: Literal["docpairs"] = "docpairs"
    id: str
    signals = ("labels",)
    pairs = True

    def read(self) -> PairFile:
        """The docpairs, read from their file if it has one in a known format."""
        import ir_datasets
        from ir_datasets.formats import TsvDocPairs

        try:
            pairs = ir_datasets.load(self.id).docpairs_handler()
            # MS MARCO's 270 million take an hour line by line, a minute as one file.
            path = Path(pairs.docpairs_path()) if type(pairs) is TsvDocPairs else None
        except Exception as error:  # its loaders and the network raise any type
            raise _no_docpairs(self.id, error) from error
        is_plain = path and path.suffix in (".gz", ".tsv")
        lines = path if path and is_plain else _docpair_lines(self.id, pairs)
        return PairFile(self.id, lines, _triple, TRIPLE)


def _docpair_lines(dataset_id: str, pairs: Any) -> Iterator[bytes]:
    try:
        for pair in pairs.docpairs_iter():
            yield f"{pair.query_id}\t{pair.doc_id_a}\t{pair.doc_id_b}\n".encode()
    except Exception as error:  # its loaders and the network raise any type
        raise _no_docpairs(dataset_id, error) from error


def _no_docpairs(dataset_id: str, error: Exception) -> DataError:
    return DataError(f"{dataset_id}: ir_datasets gives no docpairs: {error}")


class ScoreTriplesSource(FileSource):
    """Lines `positive score, negative score, query id, positive id, negative id`, tab separated.

    The form of Hofstätter et al. 2020's teacher scores (Zenodo 4068216).
    """

    type: Literal["score_triples"] = "score_triples"
    signals = ("scores",)
    pairs = True

    def read(self) -> PairFile:
        path = checked(self.file)
        return PairFile(str(path), path, _scored_triple, f"two scores, then {TRIPLE}")


def _scored_triple(line: str) -> Pair:
    high, low, query_id, positive, negative = columns_of(line)
    return Pair(query_id, positive, negative, (float(high), float(low)))


class JsonlSource(FileSource):
    """Lines of a query with its passages: their texts, labels and scores.

    The training's collection is the same file.
    """

    type: Literal["jsonl"] = "jsonl"
    signals = ("labels", "scores", "ranking")

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        """Passages in the teacher's order; for labels, which need no scores, in the file's."""
        path = checked(self.file)
        return ListFile(path, _passages(path, scored=signal != "labels"))


def _passages(path: Path, scored: bool) -> Iterator[Entry]:
    for query_id, _, passages in read_records(path):
        seen = set()
        for place, passage in enumerate(passages):
            score = passage.score if scored else float(-place)
            if score is None:
                raise DataError(
                    f"{path}:{query_id}: a passage has no teacher_score; learn from its labels, or "
                    "have a model score it"
                )
            if passage.doc_id not in seen:  # equal texts are one document
                seen.add(passage.doc_id)
                yield Entry(int(query_id), query_id, passage.doc_id, score)

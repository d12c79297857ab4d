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
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.files import checked, columns_of, decode, read_lines
from xsweep.evaluator.data.readers import read_parquet, read_records
from xsweep.evaluator.data.trec import Qrels, run_lines
from xsweep.evaluator.specs import ColumnsSpec, FileSpec, Spec
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
    labels: Qrels | None = None
    """Relevant documents that the file names, complete when all entries are read."""


class Pair(NamedTuple):
    """A query with a better and a worse document, or with a single one."""

    query_id: str
    positive: str
    negative: str | None
    scores: tuple[float, ...] | None = None
    """Scores of the documents; None for labels."""


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

    @property
    def single(self) -> bool:
        """True if a sample has one document."""
        return False

    def lacks(self, signal: Signal) -> str:
        """The reason why this source cannot give one of its format's signals; empty if it can."""
        return ""


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
    role: str = "teacher"
    """The role of that input."""
    signals = ("scores", "ranking")

    def read(self, signal: Signal, inputs: Mapping[str, Path]) -> ListFile:
        return _trec(_input(inputs, self.role) / "scores.run.gz")


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


class MeanSource(Source):
    """Mean ranks of several teachers; `lists` reads and joins their lists."""

    type: Literal["mean"] = "mean"
    parts: tuple[
        Annotated[RunSource | ScoresSource | TeachSource, Field(discriminator="type")], ...
    ] = Field(min_length=2)
    signals = ("ranking",)


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


class ParquetSource(FileSource):
    """A Parquet file, a folder or pattern of them, or `hf://datasets/ORG/NAME/FOLDER`.

    `columns` names what is read: ids of the training's collection, or texts, which then are it.
    """

    type: Literal["parquet"] = "parquet"
    columns: ColumnsSpec
    lists: bool = True
    """True if all rows of a query are its list; else each row is a sample of its own."""
    signals = ("labels", "scores", "ranking")

    @property
    def pairs(self) -> bool:  # type: ignore[override]
        """True unless rows with a document each make lists."""
        return not self.lists or len(self.columns.ids or self.columns.texts) > 2

    @property
    def single(self) -> bool:
        """True for rows with one document each that are samples of their own."""
        return not self.lists and len(self.columns.ids or self.columns.texts) == 2

    def lacks(self, signal: Signal) -> str:
        """The column, or the lists, that a signal needs and that are not named."""
        if signal == "ranking":
            return "a ranking needs lists" if self.pairs else ""
        width = len(self.columns.ids or self.columns.texts)
        # Lists of ids have the labels of the qrels, a positive and a negative have their own.
        has_labels = width > 2 or (self.lists and self.columns.ids) or self.columns.label
        if signal == "labels" and self.pairs and self.columns.score:
            return "labels of pairs leave out the column `score`"
        if has_labels if signal == "labels" else self.columns.score:
            return ""
        return f"{signal} need the column `{signal[:-1]}`: name it in columns"

    def read(self, signal: Signal = "labels", inputs: Mapping[str, Path] | None = None) -> Any:
        """A `PairFile` of the rows, with scores if their column is named, or a `ListFile`."""
        path = checked(self.file)
        if not self.pairs:
            labels: Qrels = {}
            entries = _parquet_entries(path, self.columns, labels)
            return ListFile(path, entries, not self.columns.score, labels)
        parse = _scored_triple if self.columns.score else _triple
        if self.single:
            parse = _scored_row
        return PairFile(str(path), _parquet_lines(path, self.columns), parse, "a row")


def _scored_row(line: str) -> Pair:
    value, query_id, doc_id = line.split("\t")
    return Pair(query_id, doc_id, None, (float(value),))


def _parquet_lines(path: Path, columns: ColumnsSpec) -> Iterator[bytes]:
    """Lines of each row's values and ids, some thousand at a time; texts are numbered."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    width, rows = len(columns.ids or columns.texts), 0
    value = columns.score or (columns.label if width == 2 else None)
    for batch in read_parquet(path, [*filter(None, [value]), *columns.ids]):
        end = rows + len(batch)
        parts = [batch[value].cast(pa.float64()).cast(pa.string())] if value else []
        parts += [pa.array(["0"] * len(batch))] if width > 2 and value else []
        parts += [batch[name].cast(pa.string()) for name in columns.ids]
        if columns.texts:
            first = np.arange(rows, end) * width
            parts += [pa.array(first + place).cast(pa.string()) for place in range(width)]
        lines = pc.binary_join_element_wise(*parts, "\t")
        if lines.null_count:
            row = rows + pc.index(pc.is_null(lines), True).as_py() + 1
            raise DataError(f"{path}:{row}: the row has an empty cell")
        yield "\n".join([*lines.to_pylist(), ""]).encode()
        rows = end


def _parquet_entries(path: Path, columns: ColumnsSpec, labels: Qrels) -> Iterator[Entry]:
    """Entries of the rows; relevant documents go to `labels`. Texts are numbered."""
    import numpy as np
    import pyarrow as pa

    query_column, doc_column = columns.ids or columns.texts
    beside = [name for name in (columns.score, columns.label) if name]
    optional = [*beside, *filter(None, [columns.positive_ids])]
    known: dict[str, str] = {}
    row = number = entries = 0
    for batch in read_parquet(path, [query_column, doc_column, *optional]):
        rows_R = np.arange(row + 1, row + 1 + len(batch))

        def refuse(wrong: Any, rows: Any, problem: str) -> None:
            if (places := np.flatnonzero(wrong)).size:
                raise DataError(f"{path}:{rows[places[0]]}: {problem}")

        for name in (query_column, doc_column, *beside):
            refuse(batch[name].is_null(), rows_R, "the row has an empty cell")
        kind = batch[doc_column].type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        sizes_R = _lengths(batch[doc_column]) if is_list else np.ones(len(batch), dtype=np.int64)
        rows_N = np.repeat(rows_R, sizes_R)
        flat = {}
        for name in (doc_column, *beside):
            if is_list:
                refuse(_lengths(batch[name]) != sizes_R, rows_R, "its lists differ in length")
            flat[name] = batch[name].flatten() if is_list else batch[name]
            refuse(flat[name].is_null(), rows_N, "the row has an empty cell")
        values_N = -np.arange(entries, entries + len(rows_N), dtype=np.float64)
        if columns.score:
            values_N = flat[columns.score].cast(pa.float64()).to_numpy()
            refuse(~np.isfinite(values_N), rows_N, "a score is not a finite number")
        queries, doc_ids = batch[query_column].cast(pa.string()).to_pylist(), flat[doc_column]
        if columns.texts:  # a row's query, then its documents
            starts_R = number + np.cumsum(sizes_R + 1) - sizes_R - 1
            firsts = zip(queries, map(str, starts_R.tolist()), strict=True)
            queries = [known.setdefault(text, first) for text, first in firsts]
            doc_ids = pa.array(number + np.arange(1, len(rows_N) + 1) + rows_N - rows_R[0])
            number += len(rows_N) + len(batch)
        named = [queries[place] for place in (rows_N - rows_R[0]).tolist()]
        ids = doc_ids.cast(pa.string()).to_pylist()
        if columns.label:
            for query_id, doc_id, grade in zip(
                named, ids, flat[columns.label].to_pylist(), strict=True
            ):
                if grade > 0:
                    labels.setdefault(query_id, {})[doc_id] = int(grade)
        if columns.positive_ids:
            for query_id, positives in zip(
                queries, batch[columns.positive_ids].to_pylist(), strict=True
            ):
                labels.setdefault(query_id, {}).update(dict.fromkeys(map(str, positives or ()), 1))
        yield from map(Entry, rows_N.tolist(), named, ids, values_N.tolist())
        row, entries = row + len(batch), entries + len(rows_N)


def _lengths(lists: Any) -> Any:
    """int64[rows]: the length of each list of an Arrow array."""
    return lists.value_lengths().to_numpy().astype("int64")

"""Sources that give one ranked list for each query: runs, teach jobs, files of scores or texts."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from evaluator.files import checked, read_lines, text
from evaluator.jsonl import read_records
from evaluator.trec import run_lines, twice
from trainer.teacher_specs import (
    CandidatesSource,
    JsonlSource,
    RunSource,
    ScoresSource,
    TeacherSpec,
    TeachSource,
)
from trainer.teachers.ranked import Entry, RankedLists
from xsweep import ConfigError, DataError


def read_lists(spec: TeacherSpec, inputs: Mapping[str, Path]) -> RankedLists:
    """Each query's documents, best first, with their scores."""
    if isinstance(spec.source, JsonlSource):
        return _jsonl(spec.source, scored=spec.signal != "labels")
    return READERS[spec.source.type](spec.source, inputs)


def _jsonl(source: JsonlSource, scored: bool) -> RankedLists:
    """The passages in the teacher's order; for labels, which need no scores, in the file's."""
    path = checked(source.file)
    return RankedLists(_passages(path, scored), refuse_twice=_no_twice)


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


def _no_twice(entry: Entry, is_rank: bool) -> DataError:
    return DataError(f"line {entry.line}: document {entry.doc_id} twice")


def _candidates(source: CandidatesSource, inputs: Mapping[str, Path]) -> RankedLists:
    return _trec(_input(inputs, "candidates") / "candidates.run.gz")


def _teach(source: TeachSource, inputs: Mapping[str, Path]) -> RankedLists:
    return _trec(_input(inputs, "teacher") / "scores.run.gz")


def _run(source: RunSource, inputs: Mapping[str, Path]) -> RankedLists:
    return _trec(checked(source.file), source.order)


def _trec(path: Path, order: Literal["score", "rank"] = "score") -> RankedLists:
    def refuse(entry: Entry, is_rank: bool) -> DataError:
        rank = -entry.value if is_rank else None
        return twice(path, entry.line, entry.query_id, entry.doc_id, rank)

    entries = itertools.starmap(Entry, run_lines(path, order))
    return RankedLists(entries, refuse_twice=refuse, by_rank=order == "rank")


def _scores(source: ScoresSource, inputs: Mapping[str, Path]) -> RankedLists:
    path = checked(source.file)

    def refuse(entry: Entry, is_rank: bool) -> DataError:
        return DataError(
            f"{path}:{entry.line}: document {entry.doc_id} twice for query {entry.query_id}"
        )

    return RankedLists(_score_lines(path), refuse_twice=refuse)


def _score_lines(path: Path) -> Iterator[Entry]:
    found = False
    for number, line in enumerate(read_lines(path), 1):
        fields = text(line, f"{path}:{number}").split()
        try:
            query_id, doc_id, score = fields
            value = float(score)
        except ValueError:
            raise DataError(
                f"{path}:{number}: expected a query id, a document id and a score, found {fields}"
            ) from None
        if not abs(value) < float("inf"):
            raise DataError(f"{path}:{number}: the score {score} is not a finite number")
        found = True
        yield Entry(number, query_id, doc_id, value)
    if not found:
        raise DataError(f"{path}: the file holds no scores")


def _input(inputs: Mapping[str, Path], role: str) -> Path:
    if role not in inputs:
        raise ConfigError(f"this teacher needs the input {role!r}: name its folder in `inputs`")
    return Path(inputs[role])


READERS: dict[str, Callable[..., RankedLists]] = {
    "candidates": _candidates,
    "teach": _teach,
    "run": _run,
    "scores": _scores,
}

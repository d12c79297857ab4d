"""Sources that give one ranked list for each query: runs, teach jobs, files of scores or texts."""

from collections.abc import Callable, Mapping
from pathlib import Path

from evaluator.files import checked, read_lines, text
from evaluator.jsonl import read_records
from evaluator.trec import Run, read_run, sort_docs
from trainer.specs import (
    CandidatesSource,
    JsonlSource,
    RunSource,
    ScoresSource,
    TeacherSpec,
    TeachSource,
)
from xsweep import ConfigError, DataError


def read_lists(spec: TeacherSpec, inputs: Mapping[str, Path]) -> Run:
    """Each query's documents, best first, with their scores."""
    if isinstance(spec.source, JsonlSource):
        return _jsonl(spec.source, scored=spec.signal != "labels")
    return READERS[spec.source.type](spec.source, inputs)


def _jsonl(source: JsonlSource, scored: bool) -> Run:
    """The passages in the teacher's order; for labels, which need no scores, in the file's."""
    path = checked(source.file)
    lists: Run = {}
    for query_id, _, passages in read_records(path):
        docs: dict[str, float] = {}
        for place, passage in enumerate(passages):
            score = passage.score if scored else float(-place)
            if score is None:
                raise DataError(
                    f"{path}:{query_id}: a passage has no teacher_score; learn from its labels, or "
                    "have a model score it"
                )
            docs.setdefault(passage.doc_id, score)
        lists[query_id] = dict(sort_docs(docs))
    return lists


def _candidates(source: CandidatesSource, inputs: Mapping[str, Path]) -> Run:
    return read_run(_input(inputs, "candidates") / "candidates.run.gz")


def _teach(source: TeachSource, inputs: Mapping[str, Path]) -> Run:
    return read_run(_input(inputs, "teacher") / "scores.run.gz")


def _run(source: RunSource, inputs: Mapping[str, Path]) -> Run:
    return read_run(checked(source.file), source.order)


def _scores(source: ScoresSource, inputs: Mapping[str, Path]) -> Run:
    path = checked(source.file)
    lists: Run = {}
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
        docs = lists.setdefault(query_id, {})
        if doc_id in docs:
            raise DataError(f"{path}:{number}: document {doc_id} twice for query {query_id}")
        docs[doc_id] = value
    if not lists:
        raise DataError(f"{path}: the file holds no scores")
    return {query_id: dict(sort_docs(docs)) for query_id, docs in lists.items()}


def _input(inputs: Mapping[str, Path], role: str) -> Path:
    if role not in inputs:
        raise ConfigError(f"this teacher needs the input {role!r}: name its folder in `inputs`")
    return Path(inputs[role])


READERS: dict[str, Callable[..., Run]] = {
    "candidates": _candidates,
    "teach": _teach,
    "run": _run,
    "scores": _scores,
}

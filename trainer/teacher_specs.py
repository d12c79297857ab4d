"""The specification of a teacher: its source, how lists are drawn; cheap to import (no torch)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evaluator.specs import FileSpec, Spec
from trainer.objectives.signals import Signal


class CandidatesSource(Spec):
    """Labels over the `candidates` input: positives from the qrels, negatives from the ranking."""

    type: Literal["candidates"] = "candidates"


class TeachSource(Spec):
    """The scores that a teach job left in its `scores.run.gz` (input `teacher`)."""

    type: Literal["teach"] = "teach"


class RunSource(Spec):
    """A TREC run: as a ranking, as scores, or as the pool of negatives for labels."""

    type: Literal["run"] = "run"
    file: FileSpec
    order: Literal["rank", "score"] = "score"
    """Which column orders a list: some published runs tie or disagree in the other one."""


class ScoresSource(Spec):
    """Lines `query id <TAB> document id <TAB> score`."""

    type: Literal["scores"] = "scores"
    file: FileSpec


class TriplesSource(Spec):
    """Lines `query id <TAB> positive id <TAB> negative id` (MS MARCO's triples)."""

    type: Literal["triples"] = "triples"
    file: FileSpec


class DocpairsSource(Spec):
    """The docpairs of an ir_datasets dataset, e.g. `msmarco-passage/train/triples-small`."""

    type: Literal["docpairs"] = "docpairs"
    id: str


class ScoreTriplesSource(Spec):
    """Lines `positive score, negative score, query id, positive id, negative id`, tab separated.

    The form of Hofstätter et al. 2020's teacher scores (Zenodo 4068216).
    """

    type: Literal["score_triples"] = "score_triples"
    file: FileSpec


class JsonlSource(Spec):
    """A file that carries its texts: labels, scores and rankings of `evaluator.jsonl`'s lines.

    The training's collection is the same file.
    """

    type: Literal["jsonl"] = "jsonl"
    file: FileSpec


Source = Annotated[
    CandidatesSource
    | TeachSource
    | RunSource
    | ScoresSource
    | TriplesSource
    | DocpairsSource
    | ScoreTriplesSource
    | JsonlSource,
    Field(discriminator="type"),
]

SOURCE_SIGNALS: dict[str, frozenset[Signal]] = {
    "candidates": frozenset({"labels"}),
    "teach": frozenset({"scores", "ranking"}),
    "run": frozenset({"labels", "scores", "ranking"}),
    "scores": frozenset({"scores", "ranking"}),
    "triples": frozenset({"labels"}),
    "docpairs": frozenset({"labels"}),
    "score_triples": frozenset({"scores"}),
    "jsonl": frozenset({"labels", "scores", "ranking"}),
}
"""Source type to the signals that it can give."""

PAIR_SOURCES = frozenset({"triples", "docpairs", "score_triples"})
"""Sources whose lines are finished (positive, negative) pairs: nothing is left to sample."""


class TeacherSpec(Spec):
    """Where the training signal comes from and how one sample is drawn from a query's list."""

    signal: Signal
    source: Source
    negatives: int | None = Field(default=None, ge=1)
    """Negatives beside one positive (column 0), uniform without replacement from the list."""
    list_size: int | None = Field(default=None, ge=2)
    """Documents drawn from a teacher's list; None takes the whole list."""
    depth: int | None = Field(default=None, ge=2)
    """Only the first so many documents of a query's list are used; None uses all."""
    add_positives: bool = False
    """Also use relevant documents that the list misses; else a query without any is skipped."""
    relevant_grade: int = Field(default=1, ge=1)
    """Smallest grade in the qrels that counts as relevant."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.source.type
        if self.signal not in SOURCE_SIGNALS[kind]:
            given = " or ".join(sorted(SOURCE_SIGNALS[kind]))
            raise ValueError(f"a {kind!r} source gives {given}, not {self.signal}")
        if self.negatives and self.list_size:
            raise ValueError("give negatives (positive first) or list_size (any), not both")
        if kind in PAIR_SOURCES:
            if self.negatives not in (None, 1) or self.list_size or self.depth:
                raise ValueError(f"a {kind!r} source holds finished pairs: leave out the sampling")
        elif self.signal == "labels" and self.negatives is None:
            raise ValueError("labels need negatives: how many beside each positive")
        elif self.signal == "ranking" and self.negatives is not None:
            raise ValueError("a ranking is drawn as a list: use list_size in place of negatives")
        return self

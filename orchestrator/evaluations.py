"""The evaluations of a grid: of first stages, of models that teach, and of every training."""

from collections.abc import Iterable, Mapping
from typing import Any

from evaluator.specs import (
    EvaluateSpec,
    FirstStageScorer,
    ModelScorer,
    ModelSpec,
    RunScorer,
    ScorerSpec,
    ScoringSpec,
    TeacherModelSpec,
)
from orchestrator.cells import Cell
from orchestrator.grid import TrainingSettings
from orchestrator.jobgraph import NO_PARENTS, JobGraph
from orchestrator.proportions import scoring_s
from orchestrator.references import References
from orchestrator.shared import Shared, Taught, Tested

FIRST_STAGE_S = 5.0
"""Rough cost of measuring candidates as they are."""


class Evaluations:
    """Adds evaluations on a grid's test collections to a graph."""

    def __init__(self, refs: References, shared: Shared, graph: JobGraph) -> None:
        self.refs, self.shared, self.graph = refs, shared, graph
        self.settings = refs.grid.evaluation
        self.measures = tuple(
            shared.measure(("evaluation", "measures", place), name)
            for place, name in enumerate(self.settings.measures)
        )
        self.tests = shared.tests()
        self._readings: dict[tuple[int, int], ScoringSpec] = {}
        self._specs: dict[tuple[str, str, str], EvaluateSpec] = {}

    def add_references(self, teachers: Iterable[Taught]) -> None:
        """The rows that runs are compared with: first stages, and the models that teach."""
        models: dict[str, tuple[str, TeacherModelSpec]] = {}
        for taught in teachers:
            if taught.model:
                models.setdefault(taught.model.model_dump_json(), (taught.label, taught.model))
        for test in self.tests:
            name = self.refs.first_stage_label(test.collection.name)
            self._add(test, name, FirstStageScorer(), {"system": "first_stage"}, FIRST_STAGE_S)
        for label, model in models.values():
            labels = {"system": "teacher", "teacher": label}
            cost_s = scoring_s(self.settings.depth)
            for test in self.tests:
                scoring = self.shared.scoring()
                self._add(test, label, ModelScorer(model=model), labels, cost_s, **scoring)

    def add_run(
        self,
        cell: Cell,
        run: str,
        settings: TrainingSettings,
        backbone: ModelSpec,
        tokenizer: ModelSpec,
    ) -> None:
        """A cell's training, whose identity is `run`, on every collection."""
        lengths = settings.query_tokens, settings.document_tokens
        scoring = self.shared.scoring(query_tokens=lengths[0], document_tokens=lengths[1])
        if lengths not in self._readings:
            self._readings[lengths] = self.refs.build(
                ("evaluation",), ScoringSpec, **scoring, **self.settings.passages
            )
        read_tokens = self._readings[lengths].read_tokens
        for test in self.tests:
            self._add(
                test,
                cell.name,
                RunScorer(),
                {"system": "run", **cell.labels},
                scoring_s(self.settings.depth, backbone),
                parents={"run": run},
                savings={"tokens": self.graph.tokens(test.collection, tokenizer, read_tokens)},
                **scoring,
            )

    def _add(
        self,
        test: Tested,
        name: str,
        scorer: ScorerSpec,
        labels: Mapping[str, Any],
        cost_s: float,
        *,
        parents: Mapping[str, str] = NO_PARENTS,
        savings: Mapping[str, str] = NO_PARENTS,
        **scoring: Any,
    ) -> None:
        place = {
            "collection": test.collection.name,
            "first_stage": self.refs.first_stage_label(test.collection.name),
            "depth": self.settings.depth,
            "order": len(self.graph.jobs),
        }
        self.graph.add(
            "evaluate",
            f"evaluate {name} [{test.collection.name}]",
            self._spec(test, scorer, scoring),
            parents={"candidates": test.candidates, **parents},
            savings=savings,
            labels={**labels, **place},
            cost_s=cost_s,
        )

    def _spec(self, test: Tested, scorer: ScorerSpec, scoring: Mapping[str, Any]) -> EvaluateSpec:
        """The spec, which is the same for all runs that read a collection alike."""
        key = test.collection.name, scorer.model_dump_json(), repr(scoring)
        if key not in self._specs:
            self._specs[key] = self.refs.build(
                ("evaluation",),
                EvaluateSpec,
                collection=test.collection,
                scorer=scorer,
                depth=self.settings.depth,
                measures=self.measures,
                **scoring,
                **(self.settings.passages if scoring else {}),
            )
        return self._specs[key]

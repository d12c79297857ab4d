"""What jobs cost next to each other, by a rule of thumb: it orders them and weighs progress.

Rough on purpose. `orchestrator.estimate` forecasts time and money.
"""

from evaluator.specs import ModelSpec
from trainer.specs import TeacherSpec, TrainSpec

PAIRS_PER_S = 20.0
"""Trained on by a small machine and a backbone of six layers."""
QUERIES = 200
"""Of a collection."""
SCORING = 1 / 3
"""What it takes to score a pair, next to training on it."""


def training_s(spec: TrainSpec) -> float:
    """Seconds of a training with its validations."""
    settings, validation = spec.optimisation, spec.validation
    pairs = float(settings.steps * settings.batch_queries) * _documents_per_query(spec.teacher)
    if validation:
        times = -(-settings.steps // validation.every_steps)
        queries = QUERIES * len(validation.collections)
        pairs += times * queries * validation.depth * SCORING
    return pairs / PAIRS_PER_S * _size(spec.backbone)


def scoring_s(depth: int, backbone: ModelSpec | None = None) -> float:
    """Seconds of scoring a collection's candidates, by six layers if no backbone is given."""
    return QUERIES * depth * SCORING / PAIRS_PER_S * (_size(backbone) if backbone else 1.0)


def _size(backbone: ModelSpec) -> float:
    """What a pair costs, with as many layers as are kept, next to a backbone of six layers."""
    return backbone.layers / 6 if backbone.layers else 1.0


def _documents_per_query(teacher: TeacherSpec) -> int:
    if teacher.negatives:
        return teacher.negatives + 1
    return teacher.list_size or teacher.depth or 2

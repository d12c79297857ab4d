"""What each objective can learn from and which parameters it has; imports no torch.

The table is read where a grid is planned, long before any tensor exists;
`trainer.objectives.OBJECTIVES` puts the functions beside it.
"""

from typing import Literal

Signal = Literal["labels", "scores", "ranking"]

SIGNALS: dict[str, frozenset[Signal]] = {
    "bce": frozenset({"labels"}),
    "hinge": frozenset({"labels"}),
    "infonce": frozenset({"labels"}),
    "margin_mse": frozenset({"scores"}),
    "distill_ranknet": frozenset({"scores", "ranking"}),
    "adr_mse": frozenset({"scores", "ranking"}),
    "mse": frozenset({"scores"}),
    "kl_div": frozenset({"scores"}),
    "list_net": frozenset({"labels", "scores"}),
    "lambda_rank": frozenset({"labels"}),
    "distill_lambda_rank": frozenset({"scores", "ranking"}),
}
"""Objective name to the signals that can feed it: scores give a ranking, nothing gives scores."""

PARAMETERS: dict[str, dict[str, float]] = {
    "bce": {"positive_weight": 1.0},
    "hinge": {"margin": 1.0},
    "infonce": {"temperature": 1.0},
    "margin_mse": {},
    "distill_ranknet": {},
    "adr_mse": {"temperature": 1.0},
    "mse": {},
    "kl_div": {"temperature": 1.0},
    "list_net": {},
    "lambda_rank": {},
    "distill_lambda_rank": {},
}
"""Objective name to its keyword parameters with their defaults, all positive numbers."""


def labels_only(name: str) -> bool:
    """Whether an objective learns from nothing but labels."""
    return SIGNALS[name] == {"labels"}

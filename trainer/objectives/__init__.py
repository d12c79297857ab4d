"""Objectives: pure functions of scores and targets, one file each.

`OBJECTIVES[name].function(scores_QD, targets_QD, mask_QD, **parameters) -> (sum, count)`.
Q queries by D documents; scores and targets fp32, higher is better; `mask_QD` is True where a
document stands. The count depends on targets and mask only, so that a global batch can be cut
into micro-batches and the sums divided once by the global count: cutting changes nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.objectives.table import OBJECTIVES as OBJECTIVES


def __getattr__(name: str) -> object:
    """Loads the functions, and torch with them, when they are first asked for (PEP 562)."""
    if name == "OBJECTIVES":
        from trainer.objectives.table import OBJECTIVES

        return OBJECTIVES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A teacher draws samples; a sample is a query with its documents and their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np


class Sample(NamedTuple):
    """A query with D documents; with negatives, document 0 is the positive."""

    query_id: str
    doc_ids: tuple[str, ...]
    targets_D: np.ndarray
    """float32, higher is better: 1/0 for labels, a teacher's scores, or negated ranks."""
    labels_D: np.ndarray | None = None
    """float32: 1 for relevant documents, else 0; None where they are the targets."""


class Teacher(Protocol):
    """A fixed number of units (queries or lines), from each of which samples are drawn."""

    queries: dict[str, str]
    """Texts of the queries that samples may have."""
    counts: dict[str, int]
    """What was used and what was left out and why, for the summary."""
    uses_chance: bool
    """Whether a sample of a unit is one of several; else no generator is made for it."""

    def __len__(self) -> int: ...

    def draw(self, unit: int, generator: Any) -> Sample:
        """A sample of one unit; all chance comes from the generator (None where it needs none)."""
        ...

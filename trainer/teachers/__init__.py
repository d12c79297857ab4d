"""A teacher draws samples; a sample is a query with documents and their targets."""

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
    labels_D: np.ndarray
    """float32: 1 for relevant documents, else 0."""


class Teacher(Protocol):
    """A fixed number of units (queries or lines), each of which gives samples."""

    queries: dict[str, str]
    """Texts of the queries that samples can have."""
    counts: dict[str, int]
    """Units used and skipped, by reason, for the summary."""
    uses_chance: bool
    """True if a unit has several samples; else `draw` takes no generator."""

    def __len__(self) -> int: ...

    def draw(self, unit: int, generator: Any) -> Sample:
        """Draws a sample of one unit; all randomness comes from the generator."""
        ...

"""Choices compared with all others kept equal, and how often each objective wins."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from evaluator.significance import corrected
from orchestrator.report.caption import CORRECTIONS
from orchestrator.report.comparisons import paired_statistics
from orchestrator.report.measured import (
    CONFIDENCE,
    Measured,
    interval_heads,
    interval_texts,
    intervals,
    signed,
)
from orchestrator.report.report import Report, Section
from orchestrator.report.table import Row

FIELDS = {"backbone": "model", "objective": "objective", "teacher": "teacher"}
MOST_NAMED = 6
"""Columns that can bear names; more are numbered."""


class Contrast(NamedTuple):
    """Two levels of one choice, over the pairs of systems that differ in nothing else."""

    choice: str
    better: str
    worse: str
    pairs: tuple[tuple[int, int], ...]
    """Places of the systems among the rows."""

    def weights(self, rows: int) -> np.ndarray:
        """The mean difference as a weighted sum of the systems: float64[rows]."""
        found = np.zeros(rows)
        for one, other in self.pairs:
            found[one] += 1 / len(self.pairs)
            found[other] -= 1 / len(self.pairs)
        return found


def contrasts(rows: Sequence[Row]) -> Iterator[Contrast]:
    """Every two objectives at equal backbone and teacher, two teachers at equal backbone and
    objective, and each backbone against the one before it in the grid, and the last against the
    first.
    """
    for choice, field in FIELDS.items():
        others = [each for each in FIELDS.values() if each != field]
        by_level: dict[str, dict[tuple[str, ...], int]] = {}
        for place, row in enumerate(rows):
            rest = tuple(getattr(row, other) for other in others)
            by_level.setdefault(getattr(row, field), {})[rest] = place
        levels = list(by_level)
        two = list(combinations(levels, 2))
        if choice == "backbone" and len(levels) > 2:
            two = [*pairwise(levels), (levels[0], levels[-1])]
        for one, other in two:
            shared = [rest for rest in by_level[one] if rest in by_level[other]]
            if shared:
                places = tuple((by_level[other][rest], by_level[one][rest]) for rest in shared)
                yield Contrast(choice, other, one, places)


def contrasts_section(report: Report, data: Measured) -> Section:
    """The effect of the objective at equal data next to that of data and of the backbone."""
    found = list(contrasts(data.rows))
    heads = interval_heads(data)
    title, note = "At equal data", ""
    if not found:
        return Section(title, ("choice",), [], note)
    values = intervals(data, np.array([each.weights(len(data.rows)) for each in found]))
    lines = []
    widest: dict[str, tuple[float, str]] = {}
    for each, value in zip(found, values, strict=True):
        named = f"{each.better} over {each.worse}"
        size = abs(value["value"])
        widest[each.choice] = max(widest.get(each.choice, (-1.0, "")), (size, named))
        lines.append(
            (
                each.choice,
                named,
                str(len(each.pairs)),
                signed(report, value["value"]),
                *interval_texts(report, value, heads),
            )
        )
    largest = ", ".join(
        f"{choice} {report.number(size)} ({named})" for choice, (size, named) in widest.items()
    )
    note = (
        "Mean difference over the pairs of systems that differ in this choice alone: objectives at "
        "equal backbone and teacher, teachers (that is: data and negatives) at equal backbone and "
        f"objective. {CONFIDENCE:.0%} intervals as above, uncorrected. Largest: {largest}."
    )
    if "objective" not in widest and len({row.objective for row in data.rows}) > 1:
        note += (
            " No two objectives share a teacher: what an objective is worth cannot be told from "
            "what its data are worth."
        )
    columns = ("choice", "difference of", "pairs", "difference")
    return Section(title, (*columns, *(f"over {head}" for head in heads)), lines, note)


def wins_section(report: Report, data: Measured) -> Section:
    """How often one objective's mean is above another's, backbone and collection being equal."""
    kinds = list(dict.fromkeys(_kind(report, row) for row in data.rows))
    title = "Wins of the row over the column"
    pairs = [
        pair
        for block in data.table.blocks
        for pair in combinations([row for row in block if row in data.rows], 2)
    ]
    if len(kinds) < 2 or not pairs:
        return Section(title, ("",), [], "")
    tested = [paired_statistics(data.table, column, pairs) for column in data.columns]
    p_values = corrected(np.concatenate([each.p for each in tested]), report.correction)
    gains = np.concatenate([each.difference for each in tested])
    held: Counter[tuple[str, str]] = Counter()
    won: Counter[tuple[str, str]] = Counter()
    clearly: Counter[tuple[str, str]] = Counter()
    for (one, other), gain, p in zip(
        pairs * len(data.columns), gains.tolist(), p_values.tolist(), strict=True
    ):
        pair = _kind(report, one), _kind(report, other)
        for winner, own in ((pair, gain), (pair[::-1], -gain)):
            held[winner] += 1
            won[winner] += own > 0
            clearly[winner] += own > 0 and p < report.alpha
    # Many names side by side would be wider than any page: then they are numbered.
    numbered = len(kinds) > MOST_NAMED
    names = [f"{n} {kind}" for n, kind in enumerate(kinds, 1)] if numbered else kinds
    heads = [str(n) for n in range(1, len(kinds) + 1)] if numbered else kinds
    return Section(
        title,
        ("", *heads),
        [
            (
                name,
                *(
                    f"{won[a, b]}/{held[a, b]} ({clearly[a, b]})" if held[a, b] else ""
                    for b in kinds
                ),
            )
            for name, a in zip(names, kinds, strict=True)
        ],
        "n/m (k): the better mean in n of m pairs of the same backbone and collection, k of them "
        f"significantly (paired t-test, p < {report.alpha:g} "
        f"{CORRECTIONS[report.correction]} over {len(gains)} pairs).",
    )


def _kind(report: Report, row: Row) -> str:
    return f"{row.objective} ({row.teacher})" if report.teachers_shown else row.objective

"""Two systems of a sweep query by query: wins, losses, and where they differ most.

Two systems' differences as text and Markdown to read, CSV of all queries, JSON of everything.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill, shorten
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xsweep.errors import ConfigError, did_you_mean
from xsweep.evaluator.significance import corrected, paired_t, stratified_means
from xsweep.orchestrator.report.caption import listed
from xsweep.orchestrator.report.significance import rows_named
from xsweep.orchestrator.report.table import Column, Row, build_table

if TYPE_CHECKING:
    from xsweep.db.results import Cell


CONFIDENCE = 0.95


EQUAL = 1e-9
"""Smaller differences are rounding: averages over seeds differ in their last bits."""


Texts = Mapping[str, str]


class QueryChange(NamedTuple):
    """One query's values under both systems, averaged over seeds."""

    query_id: str
    text: str
    """Empty where the store has it no more."""
    a: float
    b: float

    @property
    def difference(self) -> float:
        """A's value minus B's."""
        return self.a - self.b


class Differences(NamedTuple):
    """System A against system B by one measure on one collection."""

    measure: str
    collection: str
    a: float
    b: float
    seeds: tuple[int, int]
    """How many accepted runs are averaged of each."""
    interval: tuple[float, float]
    """95%, of the mean difference over queries."""
    effect: float
    p: float
    p_corrected: float
    """By Holm, over all collections and measures of this comparison."""
    queries: tuple[QueryChange, ...]
    """All of them, A's largest gain first, its largest loss last; ties by query id."""

    @property
    def difference(self) -> float:
        """A's mean minus B's."""
        return self.a - self.b

    @property
    def wins(self) -> int:
        """Queries on which A is better."""
        return sum(each.difference > EQUAL for each in self.queries)

    @property
    def losses(self) -> int:
        """Queries on which B is better."""
        return sum(each.difference < -EQUAL for each in self.queries)


def compare_systems(
    cells: Sequence["Cell"],
    a: str,
    b: str,
    *,
    measures: Sequence[str] = ("nDCG@10",),
    collections: Sequence[str] = (),
    texts: Callable[["Cell"], Texts] = lambda cell: {},
) -> tuple[Row, Row, list[Differences]]:
    """The two rows that `a` and `b` name, and their differences wherever both have results.

    `collections` limits where; `texts` gives the query texts of an evaluation's collection.

    Raises ConfigError for a name that is no system or several, an unknown collection or measure,
    and where the two share no collection.
    """
    known = list(dict.fromkeys(cell.labels["collection"] for cell in cells))
    for name in collections:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"no evaluation is on collection {name!r}"
                + (f"; {hint}" if hint else ".")
                + f" There are: {', '.join(known)}"
            )
    kept = [cell for cell in cells if not collections or cell.labels["collection"] in collections]
    table = build_table(kept, measures)
    rows = [_the_one_row(table.rows, name) for name in (a, b)]
    if rows[0] == rows[1]:
        raise ConfigError(f"{a!r} and {b!r} are the same system, {rows[0].name!r}")
    shared = [
        column
        for column in table.columns
        if all((row, column) in table.entries and table.entries[row, column].means for row in rows)
    ]
    if not shared:
        raise ConfigError(
            f"{rows[0].name!r} and {rows[1].name!r} have no collection on which both have accepted "
            "results: `xsweep status` shows what is missing"
        )
    found = []
    for column in shared:
        cell = next(
            cell for cell in kept if cell.means and cell.labels["collection"] == column.place
        )
        ours, theirs = (table.entries[row, column] for row in rows)
        each = _differences(column, ours.per_query[0], theirs.per_query[0], cell, texts(cell))
        counts = len(ours.means), len(theirs.means)
        found.append(each._replace(a=ours.mean, b=theirs.mean, seeds=counts))
    together = corrected(np.array([each.p for each in found]), "holm").tolist()
    compared = [each._replace(p_corrected=p) for each, p in zip(found, together, strict=True)]
    return rows[0], rows[1], compared


def _the_one_row(rows: Sequence[Row], name: str) -> Row:
    found = rows_named(rows, name, "system")
    if len(found) > 1:
        listed = ", ".join(repr(row.name) for row in found)
        raise ConfigError(f"{name!r} names {len(found)} systems: {listed}. Say which")
    return found[0]


def _differences(
    column: Column, ours: np.ndarray, theirs: np.ndarray, cell: "Cell", texts: Texts
) -> Differences:
    from scipy.special import stdtrit

    differences = (ours - theirs)[None]
    if ours.size > 1:
        mean, error, freedom = (each[0] for each in stratified_means([differences]))
        reach = float(error * stdtrit(freedom, (1 + CONFIDENCE) / 2)) if error else 0.0
        tested = paired_t([differences])
        effect, p = float(tested.effect[0]), float(tested.p[0])
    else:
        mean, reach, effect, p = float(differences[0, 0]), float("nan"), float("nan"), 1.0
    queries = [
        QueryChange(id_, texts.get(id_, ""), float(x), float(y))
        for id_, x, y in zip(sorted(cell.query_ids), ours, theirs, strict=True)
    ]
    queries.sort(key=lambda each: (-round(each.difference, 12), each.query_id))
    return Differences(
        measure=column.measure,
        collection=column.place,
        a=float("nan"),
        b=float("nan"),
        seeds=(0, 0),
        interval=(float(mean) - reach, float(mean) + reach),
        effect=effect,
        p=p,
        p_corrected=p,
        queries=tuple(queries),
    )


FORMATS = ("text", "markdown", "csv", "json")


SCHEMA = "xsweep.compare/1"


QUERY_LETTERS, LINE_LETTERS = 90, 110


def render_differences(
    sweep: str,
    rows: tuple[Row, Row],
    found: Sequence[Differences],
    *,
    format: str = "text",
    top: int = 5,
    digits: int = 3,
) -> str:
    """Text and Markdown show the `top` largest changes in both directions; CSV has a line for every
    query, JSON has all at full precision under schema `xsweep.compare/1`.
    """
    if format == "csv":
        return _csv(found)
    if format == "json":
        return _json(sweep, rows, found)
    markdown = format == "markdown"
    heading = f"{sweep}: {rows[0].name} against {rows[1].name}"
    parts = [f"### {_safe(heading)}" if markdown else heading]
    for each in found:
        parts.append(_safe(_summary(each, digits)) if markdown else _summary(each, digits))
        gains = [q for q in each.queries if q.difference > EQUAL][:top]
        losses = [q for q in reversed(each.queries) if q.difference < -EQUAL][:top]
        for title, changes in (("Largest gains", gains), ("Largest losses", losses)):
            if changes:
                render = _markdown_changes if markdown else _text_changes
                parts.append(render(title, changes, digits))
    corrected = "after Holm's correction" if len(found) > 1 else "uncorrected"
    note = (
        f"Values are means over seeds. p: two-sided paired t-test over queries, {corrected}; d: "
        "mean difference by its standard deviation; the interval is over queries."
    )
    parts.append(_safe(note) if markdown else fill(note, LINE_LETTERS))
    return "\n\n".join(parts) + "\n"


def _summary(each: Differences, digits: int) -> str:
    equal = len(each.queries) - each.wins - each.losses
    seeds = [f"{n} seeds" if n > 1 else "one run" for n in each.seeds]
    tested = ""
    if math.isfinite(each.effect) or each.p < 1:
        low, high = (_signed(end, digits) for end in each.interval)
        p = "p < 0.001" if each.p_corrected < 0.001 else f"p = {each.p_corrected:.3f}"
        tested = f" (95%: {low} to {high}), {p}, d = {_signed(each.effect, 2)}"
    return (
        f"{each.measure} on {each.collection}: {each.a:.{digits}f} against {each.b:.{digits}f} "
        f"({listed(list(dict.fromkeys(seeds)))}), difference {_signed(each.difference, digits)}"
        f"{tested}\n"
        f"Of {len(each.queries)} queries {each.wins} better, {equal} equal, {each.losses} worse"
    )


def _text_changes(title: str, changes: Sequence[QueryChange], digits: int) -> str:
    width = max(len(each.query_id) for each in changes)
    lines = [
        f"  {_signed(each.difference, digits)}  {each.b:.{digits}f} → {each.a:.{digits}f}  "
        f"{each.query_id.ljust(width)}  {_text(each)}".rstrip()
        for each in changes
    ]
    return "\n".join([title, *lines])


def _markdown_changes(title: str, changes: Sequence[QueryChange], digits: int) -> str:
    lines = [f"| {title} | from | to | query | text |", "| --: | --: | --: | :-- | :-- |"]
    lines += [
        f"| {_signed(each.difference, digits)} | {each.b:.{digits}f} | {each.a:.{digits}f} "
        f"| {_safe(each.query_id)} | {_safe(_text(each))} |"
        for each in changes
    ]
    return "\n".join(lines)


def _csv(found: Sequence[Differences]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["measure", "collection", "query_id", "a", "b", "difference", "text"])
    for each in found:
        for query in each.queries:
            writer.writerow(
                [
                    *(each.measure, each.collection, query.query_id),
                    *(repr(query.a), repr(query.b), repr(query.difference), query.text),
                ]
            )
    return out.getvalue()


def _json(sweep: str, rows: tuple[Row, Row], found: Sequence[Differences]) -> str:
    document = {
        "schema": SCHEMA,
        "sweep": sweep,
        "a": {"name": rows[0].name, **rows[0]._asdict()},
        "b": {"name": rows[1].name, **rows[1]._asdict()},
        "compared": [
            {
                "measure": each.measure,
                "collection": each.collection,
                "mean_a": each.a,
                "mean_b": each.b,
                "seeds_a": each.seeds[0],
                "seeds_b": each.seeds[1],
                "difference": each.difference,
                "interval": [_finite(end) for end in each.interval],
                "effect_size_d": _finite(each.effect),
                "p": each.p,
                "p_corrected": each.p_corrected,
                "wins": each.wins,
                "losses": each.losses,
                "queries": [
                    query._asdict() | {"difference": query.difference} for query in each.queries
                ],
            }
            for each in found
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _text(query: QueryChange) -> str:
    # a control character in a text must not steer the terminal
    plain = "".join(letter if letter.isprintable() else " " for letter in query.text)
    return shorten(plain, QUERY_LETTERS, placeholder=" …")


def _signed(value: float, digits: int) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f}"


def _safe(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

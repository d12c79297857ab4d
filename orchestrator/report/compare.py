"""Two systems of a sweep query by query: wins, losses, and the largest changes."""

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xsweep.db.results import Cell
from xsweep.errors import ConfigError
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.significance import corrected, paired_t
from xsweep.orchestrator.formatting import listed, p_value, signed
from xsweep.orchestrator.report.render_data import dump_csv, dump_json, finite, row_fields
from xsweep.orchestrator.report.render_text import escape_markdown
from xsweep.orchestrator.report.significance import CONFIDENCE, mean_and_width, rows_named
from xsweep.orchestrator.report.table import Column, Entry, Row, build_table

if TYPE_CHECKING:
    from xsweep.orchestrator.storage.store import Store

TOLERANCE = 1e-9
"""Smaller differences count as equal: averages over seeds differ in their last bits."""
FORMATS = ("text", "markdown", "csv", "json")
SCHEMA = "xsweep.compare/1"
MAX_QUERY_LETTERS, LINE_LETTERS = 90, 110
Texts = Mapping[str, str]


class QueryChange(NamedTuple):
    """One query's values under both systems, means over seeds."""

    query_id: str
    a: float
    b: float
    difference: float
    text: str
    """Empty if the store does not have it."""


class Differences(NamedTuple):
    """System A against system B by one measure on one collection."""

    measure: str
    collection: str
    a: float
    b: float
    seeds: tuple[int, int]
    """Number of accepted runs averaged for A and B."""
    interval: tuple[float, float]
    """95% interval of the mean difference over queries."""
    effect: float
    p: float
    p_corrected: float
    """p after Holm correction over all collections and measures of this comparison."""
    wins: int
    """Number of queries on which A is better; `losses`: on which B is."""
    losses: int
    queries: tuple[QueryChange, ...]
    """All queries from A's largest gain to its largest loss; ties by query id."""


def compare_systems(
    cells: Sequence[Cell],
    a: str,
    b: str,
    *,
    measures: Sequence[str] = ("nDCG@10",),
    texts: Callable[[Cell], Texts] = lambda cell: {},
) -> tuple[Row, Row, list[Differences]]:
    """The rows named `a` and `b`, and their differences on every collection that both have.

    `texts` returns the query texts of an evaluation's collection. Raises ConfigError for an unknown
    or ambiguous name, an unknown measure, and if the two systems share no collection.
    """
    table = build_table(cells, measures)
    rows = _single_row(table.rows, a), _single_row(table.rows, b)
    if rows[0] == rows[1]:
        raise ConfigError(f"{a!r} and {b!r} are the same system, {rows[0].name!r}")
    found = []
    for column in table.columns:
        ours, theirs = (table.result(row, column) for row in rows)
        if ours and theirs:
            place = column.place
            cell = next(c for c in cells if c.means and c.labels["collection"] == place)
            found.append(differences(column, ours, theirs, cell.query_ids, texts(cell)))
    if not found:
        raise ConfigError(
            f"{rows[0].name!r} and {rows[1].name!r} have no collection on which both have accepted "
            "results: `xsweep status` shows what is missing"
        )
    p_values = corrected(np.array([each.p for each in found]), "holm").tolist()
    return *rows, [each._replace(p_corrected=p) for each, p in zip(found, p_values, strict=True)]


def query_texts(store: "Store", cell: Cell) -> Texts:
    """Query texts in the candidates' folder of an evaluation; none where it has no candidates.

    Raises OSError or XsweepError where the store does not have it.
    """
    candidates = cell.parents_summary.get("candidates")
    if candidates is None or not candidates.folder:
        return {}
    return dict(read_texts(store.fetch_file(f"{candidates.folder}/queries.jsonl.gz")))


def _single_row(rows: Sequence[Row], name: str) -> Row:
    found = rows_named(rows, name, "system")
    if len(found) > 1:
        names = ", ".join(repr(row.name) for row in found)
        raise ConfigError(f"{name!r} names {len(found)} systems: {names}. Use one of these names")
    return found[0]


def differences(
    column: Column, ours: Entry, theirs: Entry, query_ids: Sequence[str], texts: Texts
) -> Differences:
    """The differences of two entries over one collection's queries; p is not corrected."""
    (a_Q,), (b_Q,) = ours.per_query, theirs.per_query
    mean, width, effect, p = float((a_Q - b_Q).mean()), float("nan"), float("nan"), 1.0
    if a_Q.size > 1:
        mean, width = mean_and_width([a_Q - b_Q])
        tested = paired_t([(a_Q - b_Q)[None]])
        effect, p = float(tested.effect[0]), float(tested.p[0])
    queries = [
        QueryChange(id_, a, b, a - b, texts.get(id_, ""))
        for id_, a, b in zip(sorted(query_ids), a_Q.tolist(), b_Q.tolist(), strict=True)
    ]
    queries.sort(key=lambda each: (-round(each.difference, 12), each.query_id))
    return Differences(
        measure=column.measure,
        collection=column.place,
        a=ours.mean,
        b=theirs.mean,
        seeds=(len(ours.means), len(theirs.means)),
        interval=(mean - width, mean + width),
        effect=effect,
        p=p,
        p_corrected=p,
        wins=int((a_Q - b_Q > TOLERANCE).sum()),
        losses=int((a_Q - b_Q < -TOLERANCE).sum()),
        queries=tuple(queries),
    )


def render_differences(
    sweep: str,
    rows: tuple[Row, Row],
    found: Sequence[Differences],
    *,
    format: str = "text",
    top: int = 5,
    digits: int = 3,
) -> str:
    """The differences in one of `FORMATS`.

    Text and Markdown show the `top` largest changes in both directions; CSV has a line for every
    query, JSON has everything at full precision under schema `xsweep.compare/1`.
    """
    if format == "csv":
        return dump_csv(
            [
                {"measure": each.measure, "collection": each.collection, **query._asdict()}
                for each in found
                for query in each.queries
            ]
        )
    if format == "json":
        return dump_json(_document(sweep, rows, found))
    markdown = format == "markdown"
    escape = escape_markdown if markdown else str
    heading = escape(f"{sweep}: {rows[0].name} vs. {rows[1].name}")
    parts = [f"### {heading}" if markdown else heading]
    for each in found:
        parts.append(escape(summarize(each, digits)))
        gains = each.queries[: min(top, each.wins)]
        losses = each.queries[::-1][: min(top, each.losses)]
        for title, changes in (("Largest gains", gains), ("Largest losses", losses)):
            if changes:
                render = _markdown_changes if markdown else _text_changes
                parts.append(render(title, changes, digits))
    correction = "Holm-corrected" if len(found) > 1 else "uncorrected"
    note = (
        f"Values are means over seeds. p: two-sided paired t-test over queries, {correction}; d: "
        "mean difference divided by its standard deviation; the interval is over queries."
    )
    parts.append(escape(note) if markdown else fill(note, LINE_LETTERS))
    return "\n\n".join(parts) + "\n"


def summarize(each: Differences, digits: int) -> str:
    """Two lines: means with their difference, its interval and its test; wins and losses."""
    equal = len(each.queries) - each.wins - each.losses
    seeds = [f"{n} seeds" if n > 1 else "one run" for n in each.seeds]
    tested = ""
    if math.isfinite(each.effect) or each.p < 1:
        low, high = (signed(end, digits) for end in each.interval)
        p, d = p_value(each.p_corrected), signed(each.effect, 2)
        tested = f" ({CONFIDENCE:.0%} CI: {low} to {high}), {p}, d = {d}"
    return (
        f"{each.measure} on {each.collection}: {each.a:.{digits}f} vs. {each.b:.{digits}f} "
        f"({listed(list(dict.fromkeys(seeds)))}), difference {signed(each.a - each.b, digits)}"
        f"{tested}\n"
        f"{len(each.queries)} queries: {each.wins} better, {equal} equal, {each.losses} worse"
    )


def _text_changes(title: str, changes: Sequence[QueryChange], digits: int) -> str:
    width = max(len(each.query_id) for each in changes)
    lines = [
        f"  {signed(each.difference, digits)}  {each.b:.{digits}f} → {each.a:.{digits}f}  "
        f"{each.query_id.ljust(width)}  {_short(each.text)}".rstrip()
        for each in changes
    ]
    return "\n".join([title, *lines])


def _markdown_changes(title: str, changes: Sequence[QueryChange], digits: int) -> str:
    lines = [f"| {title} | from | to | query | text |", "| --: | --: | --: | :-- | :-- |"]
    lines += [
        f"| {signed(each.difference, digits)} | {each.b:.{digits}f} | {each.a:.{digits}f} "
        f"| {escape_markdown(each.query_id)} | {escape_markdown(_short(each.text))} |"
        for each in changes
    ]
    return "\n".join(lines)


def _short(text: str) -> str:
    # a control character in a text must not reach the terminal
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return shorten(plain, MAX_QUERY_LETTERS, placeholder=" …")


def _document(sweep: str, rows: tuple[Row, Row], found: Sequence[Differences]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "sweep": sweep,
        "a": row_fields(rows[0]),
        "b": row_fields(rows[1]),
        "compared": [
            {
                "measure": each.measure,
                "collection": each.collection,
                "mean_a": each.a,
                "mean_b": each.b,
                "seeds_a": each.seeds[0],
                "seeds_b": each.seeds[1],
                "difference": each.a - each.b,
                "interval": [finite(end) for end in each.interval],
                "effect_size_d": finite(each.effect),
                "p": each.p,
                "p_corrected": each.p_corrected,
                "wins": each.wins,
                "losses": each.losses,
                "queries": [query._asdict() for query in each.queries],
            }
            for each in found
        ],
    }

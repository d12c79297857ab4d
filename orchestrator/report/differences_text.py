"""Two systems' differences as text and Markdown to read, CSV of all queries, JSON of everything."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from textwrap import fill, shorten

from orchestrator.report.caption import listed
from orchestrator.report.differences import EQUAL, Differences, QueryChange
from orchestrator.report.table import Row

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

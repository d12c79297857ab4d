"""The report as plain text for a terminal: no colours, marks that survive copy and paste."""

import re
from collections.abc import Sequence
from itertools import groupby, zip_longest
from textwrap import wrap

from orchestrator.report.caption import Conclusion, Style, caption, conclusions, title
from orchestrator.report.report import Report, Shown
from orchestrator.report.table import Column

STYLE = Style(best="*0.5*", second="_0.5_", better="▲", worse="▼")
GAP = "   "


def render_text(report: Report, *, width: int = 110) -> str:
    """Title, table, caption and conclusions, lines of at most `width` characters where they can.

    Columns that do not fit beside the labels follow below, with the labels again.
    """
    labels = _labels(report)
    label_width = max(map(len, labels))
    columns = [
        _column(report, column, head)
        for column, head in zip(report.table.columns, report.heads[-1], strict=True)
    ]
    parts = []
    start = 0
    while start < len(columns):
        end, used = start, label_width
        while end < len(columns) and (end == start or used + len(columns[end][0]) <= width):
            used += len(GAP) + len(columns[end][0])
            end += 1
        heads = [level[start:end] for level in report.heads]
        parts.append(_block(report, labels, columns[start:end], heads))
        start = end
    below = "\n".join(_wrap(paragraph, width) for paragraph in caption(report, STYLE))
    found = [_conclusion(each) for each in conclusions(report)]
    return "\n\n".join([title(report), *parts, below, *found]) + "\n"


def _labels(report: Report) -> list[str]:
    """Label lines: the heads, then one per row, a repeated backbone left blank."""
    rows = [report.label_heads]
    for block in report.blocks:
        seen = ""
        for row in block:
            label = report.label(row)
            rows.append((" " * len(seen), *label[1:]) if label[0] == seen else label)
            seen = label[0] if row.system == "run" else ""
    several = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in several) for i in range(len(report.label_heads) - 1)]
    return [
        "  ".join([*(part.ljust(w) for part, w in zip(row, widths, strict=False)), row[-1]])
        if len(row) > 1
        else row[0]
        for row in rows
    ]


def _column(report: Report, column: Column, head: str) -> list[str]:
    """A column's places, top to bottom, with values, spreads, marks and notes each aligned."""
    shown = [report.shown(row, column) for row in report.table.rows]
    pieces = [_pieces(each) for each in shown]
    widths = [max((len(parts[i]) for parts in pieces if parts[0]), default=0) for i in range(4)]
    cells = [
        " ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True) if w)
        if parts[0]
        else f" {parts[-1]}"
        for parts in pieces
    ]
    width = max(map(len, [f" {head}", *cells]))
    return [cell.ljust(width) for cell in cells]


def _pieces(shown: Shown) -> tuple[str, str, str, str]:
    around = {1: "*", 2: "_"}.get(shown.rank, " ")
    marks = "".join(
        (STYLE.better if verdict == "better" else STYLE.worse) + letter
        for verdict, letter in shown.marks
    )
    value = shown.value and f"{around}{shown.value}{around}"
    return value, shown.spread and f"± {shown.spread}", marks, shown.note


def _block(
    report: Report,
    labels: Sequence[str],
    columns: Sequence[Sequence[str]],
    heads: Sequence[Sequence[str]],
) -> str:
    """One stretch of columns with its labels, heads and rules."""
    label_width = max(map(len, labels))
    widths = [len(column[0]) for column in columns]
    lines = []
    for level in heads:
        line = labels[0].ljust(label_width) if level is heads[-1] else " " * label_width
        for name, same in groupby(zip(level, widths, strict=True), key=lambda each: each[0]):
            span = [w for _, w in same]
            line += GAP + f" {name}".ljust(sum(span) + len(GAP) * (len(span) - 1))
        lines.append(line.rstrip())
    rule = "─" * (label_width + sum(widths) + len(GAP) * len(widths))
    lines.append(rule)
    place = 0
    for block in report.blocks:
        for _ in block:
            cells = [column[place] for column in columns]
            lines.append(GAP.join([labels[place + 1].ljust(label_width), *cells]).rstrip())
            place += 1
        lines.append(rule)
    return "\n".join(lines)


def _conclusion(conclusion: Conclusion) -> str:
    """The heading, then a line per system, its figures in columns."""
    lines = [
        (name if place == 0 else "", *figures)
        for name, systems in conclusion.found.items()
        for place, figures in enumerate(systems or [("none",)])
    ]
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    padded = (zip(line, widths, strict=False) for line in lines)
    rows = ["  ".join(part.ljust(width) for part, width in line).rstrip() for line in padded]
    return "\n  ".join([conclusion.heading, *rows])


def _wrap(paragraph: str, width: int) -> str:
    """Lines of at most `width` that keep `p < 0.05` and `k1 = 0.9` together."""
    glued = re.sub(" ([<=]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", paragraph)
    lines = wrap(glued, width, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")

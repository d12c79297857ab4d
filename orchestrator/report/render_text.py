"""The report as text for a terminal, with marks that survive copy and paste, and as Markdown."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, islice, zip_longest
from textwrap import wrap

from xsweep.orchestrator.report.caption import Conclusion, Style, caption, conclusions, notes, title
from xsweep.orchestrator.report.report import PLAIN, DisplayCell, Layout, Report, Section
from xsweep.orchestrator.report.table import Column

TEXT_STYLE = Style(best="*0.5*", second="_0.5_", better="▲", worse="▼")
MARKDOWN_STYLE = TEXT_STYLE._replace(best="bold", second="underlined")
GAP = "   "


def render_text(report: Report, layout: Layout = PLAIN) -> str:
    """Title, table, caption, notes, conclusions and sections, in lines of at most `layout.width`.

    Columns that do not fit beside the labels continue below, with the labels repeated.
    """
    below = _wrap(" ".join(caption(report, TEXT_STYLE)), layout.width)
    further = "\n".join(_wrap(paragraph, layout.width) for paragraph in notes(report))
    found = [_conclusion(each, layout.width) for each in conclusions(report)]
    sections = [_section(each, layout.width) for each in report.sections]
    parts = [*_tables(report, layout.width), below, further, *found, *sections]
    return "\n\n".join([title(report), *parts]) + "\n"


def render_tables(report: Report, width: int) -> list[str]:
    """The lines of title and table alone."""
    return "\n".join([title(report), *_tables(report, width)]).splitlines()


def _tables(report: Report, width: int) -> list[str]:
    labels = _labels(report)
    columns = [
        _column(report, column, head)
        for column, head in zip(report.table.columns, report.heads[-1], strict=True)
    ]
    return [
        _block(report, labels, columns[start:end], [level[start:end] for level in report.heads])
        for start, end in _stretches(columns, width - len(labels[0]))
    ]


def _stretches(columns: Sequence[Sequence[str]], room: int) -> Iterator[tuple[int, int]]:
    """Runs of columns that fit into `room` characters, at least one column each."""
    start, used = 0, 0
    for place, column in enumerate(columns):
        needed = len(GAP) + len(column[0])
        if place > start and used + needed > room:
            yield start, place
            start, used = place, 0
        used += needed
    yield start, len(columns)


def _labels(report: Report) -> list[str]:
    """Heads, then one line per row, padded to one width; a repeated backbone is left blank."""
    rows = [report.label_heads]
    for block in report.table.blocks:
        seen = ""
        for row in block:
            label = report.label(row)
            rows.append(("", *label[1:]) if label[0] == seen else label)
            seen = label[0] if row.system == "run" else ""
    # the single part of a reference row spans the label columns and widens none of them
    several = _aligned([row for row in rows if len(row) > 1])
    lines = [several.pop(0) if len(row) > 1 else row[0] for row in rows]
    return [line.ljust(max(map(len, lines))) for line in lines]


def _column(report: Report, column: Column, head: str) -> list[str]:
    """Head and cells of a column, with values, spreads, marks and notes each aligned."""
    pieces = [_pieces(report.shown(row, column)) for row in report.table.rows]
    widths = [max((len(parts[i]) for parts in pieces if parts[0]), default=0) for i in range(4)]
    cells = [
        " ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True) if w)
        if parts[0]
        else f" {parts[-1]}"
        for parts in pieces
    ]
    width = max(map(len, [f" {head}", *cells]))
    return [cell.ljust(width) for cell in cells]


def _pieces(shown: DisplayCell) -> tuple[str, str, str, str]:
    around = {1: "*", 2: "_"}.get(shown.rank, " ")
    marks = _marks(shown)
    if shown.beaten:
        marks = f"{marks or ' '} {shown.beaten_text}"
    value = shown.value and f"{around}{shown.value}{around}"
    return value, shown.spread and f"± {shown.spread}", marks, shown.note


def _marks(shown: DisplayCell) -> str:
    return "".join(getattr(TEXT_STYLE, verdict) + letter for verdict, letter in shown.marks)


def _block(
    report: Report,
    labels: Sequence[str],
    columns: Sequence[Sequence[str]],
    heads: Sequence[Sequence[str]],
) -> str:
    """One stretch of columns with its labels, heads and rules."""
    widths = [len(column[0]) for column in columns]
    lines = []
    for level in heads:
        line = labels[0] if level is heads[-1] else " " * len(labels[0])
        for name, same in groupby(zip(level, widths, strict=True), key=lambda each: each[0]):
            span = [width + len(GAP) for _, width in same]
            line += (GAP + f" {name}").ljust(sum(span))
        lines.append(line.rstrip())
    rule = "─" * (len(labels[0]) + sum(width + len(GAP) for width in widths))
    rows = iter(zip(labels[1:], *columns, strict=True))
    for block in report.table.blocks:
        lines.append(rule)
        lines += [GAP.join(parts).rstrip() for parts in islice(rows, len(block))]
    return "\n".join([*lines, rule])


def _conclusion(conclusion: Conclusion, width: int) -> str:
    """Heading, then a line per system with its figures in columns, below its verdict if narrow."""
    lines = [
        (name if place == 0 else "", *figures)
        for name, systems in conclusion.found.items()
        for place, figures in enumerate(systems or [("none",)])
    ]
    found = _aligned(lines)
    if max(map(len, found), default=0) + 2 > width:
        found = _aligned([("", *figures) for _, *figures in lines])
        for place, (name, *_) in reversed(list(enumerate(lines))):
            found[place:place] = [name] if name else []
    return "\n  ".join([conclusion.heading, *found])


def _section(section: Section, width: int) -> str:
    head, *lines = _aligned([section.heads, *section.lines])
    rule = "─" * max(map(len, [head, *lines]))
    return "\n".join([section.title, "", head, rule, *lines, rule, _wrap(section.note, width)])


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    padded = (zip(line, widths, strict=False) for line in lines)
    return ["  ".join(part.ljust(width) for part, width in line).rstrip() for line in padded]


def _wrap(paragraph: str, width: int) -> str:
    """Lines of at most `width` that keep `p < 0.05` and `k1 = 0.9` together."""
    glued = re.sub(" ([<=]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", paragraph)
    lines = wrap(glued, width, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def render_markdown(report: Report, layout: Layout = PLAIN) -> str:
    """Title, one pipe table, caption, notes, conclusions and sections."""
    heads = [" ".join(dict.fromkeys(levels)) for levels in zip(*report.heads, strict=True)]
    lines = [_line([*report.label_heads, *map(escape_markdown, heads)])]
    lines.append(_line([*[":--"] * len(report.label_heads), *["--:"] * len(heads)]))
    for row in report.table.rows:
        label = [*map(escape_markdown, report.label(row))]
        label += [""] * (len(report.label_heads) - len(label))
        shown = (report.shown(row, column) for column in report.table.columns)
        lines.append(_line([*label, *map(_markdown_cell, shown)]))
    parts = [f"### {escape_markdown(title(report))}", "\n".join(lines)]
    below = " ".join(caption(report, MARKDOWN_STYLE))
    parts += map(escape_markdown, (below, *notes(report)))
    for each in conclusions(report):
        lines = [
            f"- {name}: {'; '.join(map(', '.join, systems)) or 'none'}"
            for name, systems in each.found.items()
        ]
        parts += [f"**{escape_markdown(each.heading)}**", escape_markdown("\n".join(lines))]
    for section in report.sections:
        lines = [_line([*map(escape_markdown, line)]) for line in (section.heads, *section.lines)]
        lines.insert(1, _line([":--"] * len(section.heads)))
        parts += [f"**{escape_markdown(section.title)}**", "\n".join(lines)]
        parts.append(escape_markdown(section.note))
    return "\n\n".join(parts) + "\n"


def _markdown_cell(shown: DisplayCell) -> str:
    value = {1: f"**{shown.value}**", 2: f"<u>{shown.value}</u>"}.get(shown.rank, shown.value)
    spread = f"± {shown.spread}" if shown.spread else ""
    beaten = f"<sup>{shown.beaten_text}</sup>" if shown.beaten else ""
    return " ".join(filter(None, [value, spread, _marks(shown) + beaten, shown.note]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """Text in which no letter is markup."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)

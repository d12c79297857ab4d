"""The report as Markdown: bold and underlined as on paper, names safe from being markup."""

import re

from orchestrator.report.caption import Style, caption, conclusions, title
from orchestrator.report.report import Report, Shown

STYLE = Style(best="bold", second="underlined", better="▲", worse="▼")


def render_markdown(report: Report) -> str:
    """Title, one pipe table, caption and conclusions."""
    heads = [" ".join(dict.fromkeys(levels)) for levels in zip(*report.heads, strict=True)]
    lines = [_line([*report.label_heads, *map(_escape, heads)])]
    lines.append(_line([*[":--"] * len(report.label_heads), *["--:"] * len(heads)]))
    for row in report.table.rows:
        label = [*map(_escape, report.label(row))]
        label += [""] * (len(report.label_heads) - len(label))
        shown = (report.shown(row, column) for column in report.table.columns)
        lines.append(_line([*label, *map(_cell, shown)]))
    parts = [f"### {_escape(title(report))}", "\n".join(lines)]
    parts += [_escape(paragraph) for paragraph in caption(report, STYLE)]
    for each in conclusions(report):
        lines = [
            f"- {name}: {'; '.join(map(', '.join, systems)) or 'none'}"
            for name, systems in each.found.items()
        ]
        parts += [f"**{_escape(each.heading)}**", _escape("\n".join(lines))]
    for section in report.sections:
        lines = [
            _line([_escape(part) for part in line]) for line in (section.heads, *section.lines)
        ]
        lines.insert(1, _line([":--"] * len(section.heads)))
        parts += [f"**{_escape(section.title)}**", "\n".join(lines), _escape(section.note)]
    return "\n\n".join(parts) + "\n"


def _cell(shown: Shown) -> str:
    value = {1: f"**{shown.value}**", 2: f"<u>{shown.value}</u>"}.get(shown.rank, shown.value)
    spread = f"± {shown.spread}" if shown.spread else ""
    marks = "".join(
        (STYLE.better if verdict == "better" else STYLE.worse) + letter
        for verdict, letter in shown.marks
    )
    beaten = f"<sup>{shown.beaten_text}</sup>" if shown.beaten else ""
    return " ".join(filter(None, [value, spread, marks + beaten, shown.note]))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)

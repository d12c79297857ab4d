"""The report as a LaTeX table: booktabs only, every name escaped, for pdflatex."""

import re
from collections.abc import Sequence
from itertools import groupby

from orchestrator.report import PLAIN, Layout
from orchestrator.report.caption import Style, caption, title
from orchestrator.report.report import Report, Section, Shown
from orchestrator.report.table import Column

STYLE = Style(best="bold", second="underlined", better="↑", worse="↓")
SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    '"': "''",
    # at the start of a row these would be read as options of the \\ before them
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
PREAMBLE = r"""\documentclass%(options)s{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{rotating}
\begin{document}
"""
SIZES = ((30, r"\small"), (42, r"\footnotesize"), (1000, r"\scriptsize"))
"""Up to so many lines a table is set in that size."""
LINES_PER_PAGE = 64
"""Tabulars that have more lines together become tables of their own."""
FLOATS_BETWEEN_PAGES = 6
"""TeX holds back few floats: after so many a standalone document starts a new page."""


def render_latex(report: Report, layout: Layout = PLAIN) -> str:
    """Table environments with captions and labels; they need `\\usepackage{booktabs}`.

    `layout.standalone` gives a document that compiles as it is, `wide` tables across both columns
    of a two-column page, `landscape` turned ones (`\\usepackage{rotating}`), `figures` a figure
    environment for each file (`\\usepackage{graphicx}`). More than `max_columns` columns continue
    in a further tabular below, or in a further table where the page is full.
    """
    tables = [
        *_main_tables(report, layout),
        *(_section(section, layout) for section in report.sections),
        *(_figure(report, path, layout) for path in layout.figures),
    ]
    if not layout.standalone:
        return "\n".join(tables)
    parts = [PREAMBLE % {"options": "[twocolumn]" if layout.wide else ""}]
    for place, table in enumerate(tables, start=1):
        parts += [table, "\\clearpage\n" if place % FLOATS_BETWEEN_PAGES == 0 else ""]
    return "".join([*parts, "\\end{document}\n"])


def escape(text: str) -> str:
    """Text that pdflatex prints as it stands; a letter beyond Latin is spelt as its code point.

    `a_b & 50%` -> `a\\_b \\& 50\\%`.
    """
    return "".join(
        SIGNS.get(letter) or (letter if ord(letter) < 0x180 else f"{{[}}U+{ord(letter):04X}{{]}}")
        for letter in text
        if letter.isprintable() or letter == " "
    )


def _main_tables(report: Report, layout: Layout) -> list[str]:
    columns, rows = report.table.columns, len(report.table.rows)
    size = next(size for most, size in SIZES if rows <= most)
    stretches = [
        _tabular(report, columns[start : start + layout.max_columns], start)
        for start in range(0, len(columns), layout.max_columns)
    ]
    per_table = max(LINES_PER_PAGE // (rows + 5), 1)
    text = " ".join([f"{title(report)}.", *caption(report, STYLE)])
    label = rf"\label{{tab:{re.sub('[^0-9A-Za-z]', '-', report.sweep)}}}"
    tables = []
    for start in range(0, len(stretches), per_table):
        body = [size, "\n\\par\\medskip\n".join(stretches[start : start + per_table])]
        if start == 0:
            body += [rf"\caption{{{escape(text)}}}", label]
        else:
            body += [
                r"\addtocounter{table}{-1}",
                rf"\caption{{{escape(f'{title(report)}, continued.')}}}",
            ]
        tables.append(_environment("table", layout, body))
    return tables


def _section(section: Section, layout: Layout) -> str:
    heads, *rows = (
        " & ".join(map(escape, line)) + r" \\" for line in (section.heads, *section.lines)
    )
    size = next(size for most, size in SIZES if len(rows) <= most)
    small = r"\footnotesize" if len(section.heads) > 5 and size == r"\small" else size
    return _environment(
        "table",
        layout,
        [
            small,
            rf"\begin{{tabular}}{{{'l' * len(section.heads)}}}",
            *(r"\toprule", heads, r"\midrule", *rows, r"\bottomrule"),
            r"\end{tabular}",
            rf"\caption{{{escape(f'{section.title}. {section.note}')}}}",
        ],
    )


def _figure(report: Report, path: str, layout: Layout) -> str:
    name = path.rpartition("/")[2].rpartition(".")[0].replace("-", " ")
    return _environment(
        "figure",
        layout,
        [
            rf"\includegraphics[width=\linewidth]{{\detokenize{{{path}}}}}",
            rf"\caption{{{escape(f'{report.sweep}: {name}.')}}}",
        ],
    )


def _environment(kind: str, layout: Layout, body: Sequence[str]) -> str:
    star = "*" if layout.wide else ""
    turned = layout.landscape and kind == "table"
    name = f"sidewaystable{star}" if turned else f"{kind}{star}"
    where = "" if turned else "[tp]"
    lines = [rf"\begin{{{name}}}{where}", r"\centering", *body, rf"\end{{{name}}}"]
    return "\n".join(lines) + "\n"


def _tabular(report: Report, columns: Sequence[Column], start: int) -> str:
    labels = len(report.label_heads)
    lines = [rf"\begin{{tabular}}{{{'l' * (labels + len(columns))}}}", r"\toprule"]
    levels = [level[start : start + len(columns)] for level in report.heads]
    for level in levels[:-1]:
        spans, rules, place = [], [], labels + 1
        for name, same in groupby(level):
            size = len(list(same))
            spans.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + size - 1}}}")
            place += size
        lines += [f"{'& ' * labels}{' & '.join(spans)} \\\\", "".join(rules)]
    lines.append(" & ".join(map(escape, (*report.label_heads, *levels[-1]))) + r" \\")
    for block in report.table.blocks:
        lines.append(r"\midrule")
        for row in block:
            label = report.label(row)
            if len(label) == 1:
                cells = [rf"\multicolumn{{{labels}}}{{l}}{{{escape(label[0])}}}"]
            else:
                first = label[0] if row is block[0] else ""
                cells = [escape(part) for part in (first, *label[1:])]
            cells += [_cell(report.shown(row, column)) for column in columns]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cell(shown: Shown) -> str:
    if not shown.value:
        return rf"\textit{{{escape(shown.note)}}}"
    value = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(shown.rank, "%s") % shown.value
    spread = rf"{{\scriptsize$\,\pm\,${shown.spread}}}" if shown.spread else ""
    arrows = " ".join(
        rf"\{'uparrow' if verdict == 'better' else 'downarrow'}"
        + (rf" \mathrm{{{letter}}}" if letter else "")
        for verdict, letter in shown.marks
    )
    if shown.beaten:
        arrows += rf"\mathrm{{{shown.beaten_text}}}"
    note = rf" {{\scriptsize({shown.note})}}" if shown.note else ""
    return value + spread + (f"$^{{{arrows}}}$" if arrows else "") + note

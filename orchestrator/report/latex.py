"""The report as a LaTeX table: booktabs only, every name escaped, for pdflatex."""

import re
from collections.abc import Sequence
from itertools import groupby

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
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\begin{document}
"""


def render_latex(
    report: Report, *, standalone: bool = False, wide: bool = False, max_columns: int = 6
) -> str:
    """A table environment with caption and label; it needs `\\usepackage{booktabs}`.

    `standalone` gives a document that compiles as it is, `wide` a `table*` across both columns
    of a two-column page. More than `max_columns` columns continue in a further tabular below.
    """
    environment = "table*" if wide else "table"
    columns = report.table.columns
    pieces = [
        _tabular(report, columns[start : start + max_columns], start)
        for start in range(0, len(columns), max_columns)
    ]
    text = " ".join([f"{title(report)}.", *caption(report, STYLE)])
    lines = [
        rf"\begin{{{environment}}}[t]",
        r"\centering",
        r"\small",
        "\n\\par\\medskip\n".join(pieces),
        rf"\caption{{{escape(text)}}}",
        rf"\label{{tab:{re.sub('[^0-9A-Za-z]', '-', report.sweep)}}}",
        rf"\end{{{environment}}}",
    ]
    for section in report.sections:
        lines += _section(section)
    table = "\n".join(lines) + "\n"
    return f"{PREAMBLE}{table}\\end{{document}}\n" if standalone else table


def escape(text: str) -> str:
    """Text that pdflatex prints as it stands; a letter beyond Latin is spelt as its code point.

    `a_b & 50%` -> `a\\_b \\& 50\\%`.
    """
    return "".join(
        SIGNS.get(letter) or (letter if ord(letter) < 0x180 else f"{{[}}U+{ord(letter):04X}{{]}}")
        for letter in text
        if letter.isprintable() or letter == " "
    )


def _section(section: Section) -> list[str]:
    heads, *rows = (
        " & ".join(map(escape, line)) + r" \\" for line in (section.heads, *section.lines)
    )
    return [
        "",
        r"\begin{table}[t]",
        r"\centering",
        r"\small",
        rf"\begin{{tabular}}{{{'l' * len(section.heads)}}}",
        *(r"\toprule", heads, r"\midrule", *rows, r"\bottomrule"),
        r"\end{tabular}",
        rf"\caption{{{escape(f'{section.title}. {section.note}')}}}",
        r"\end{table}",
    ]


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
    for block in report.blocks:
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
    note = rf" {{\scriptsize({shown.note})}}" if shown.note else ""
    return value + spread + (f"$^{{{arrows}}}$" if arrows else "") + note

"""The report as a LaTeX table: booktabs only, every name escaped, for pdflatex."""

import re
from collections.abc import Sequence
from itertools import groupby

from xsweep.orchestrator.report.caption import Style, caption, conclusions, detailed, title
from xsweep.orchestrator.report.report import PLAIN, DisplayCell, Layout, Report, Section
from xsweep.orchestrator.report.table import Column

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
    "|": r"\textbar{}",
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
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{rotating}
\begin{document}
"""


COLUMNS = {False: 6, True: 10}
"""Columns of one tabular upright and in landscape, unless `max_columns` sets another number."""


LINES = {False: 45, True: 28}
"""Lines of \\small that leave room for a caption on an upright and on a turned page."""


TALLEST = {False: r"0.8\textheight", True: r"0.46\linewidth"}
"""Of one tabular, so that its caption has room on the upright or turned page."""


FLOATS_BETWEEN_PAGES = 6
"""TeX holds back few floats: after so many a standalone document starts a new page."""


def render_latex(report: Report, layout: Layout = PLAIN) -> str:
    """Table environments with captions and labels; they need `booktabs` and `graphicx`.

    `layout.standalone` gives a document that compiles as it is, `wide` tables across both columns
    of a two-column page, `landscape` turned ones (`\\usepackage{rotating}`), `figures` a figure
    environment for each file. Columns beyond `max_columns` continue in a further tabular below, or
    in a further table where the page is full; what is still too wide is scaled down.
    """
    tables = [
        *_main_tables(report, layout),
        *(
            table
            for section in (*_conclusions(report), *report.sections)
            for table in _section(section, layout)
        ),
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
    columns = report.table.columns
    step = layout.max_columns or COLUMNS[layout.landscape]
    tabulars = [
        _fitted(_tabular(report, columns[start : start + step], start), layout)
        for start in range(0, len(columns), step)
    ]
    text = " ".join([f"{title(report)}.", *caption(report, STYLE)])
    label = rf"\label{{tab:{re.sub('[^0-9A-Za-z]', '-', report.sweep)}}}"
    stacked = max(1, LINES[layout.landscape] // (len(report.table.rows) + len(report.heads)))
    tables = []
    for start in range(0, len(tabulars), stacked):
        after = _continued(title(report)) if start else [rf"\caption{{{escape(text)}}}", label]
        body = "\n\\par\\medskip\n".join(tabulars[start : start + stacked])
        tables.append(_environment("table", layout, [r"\small", body, *after]))
    return tables


def _section(section: Section, layout: Layout) -> list[str]:
    heads, *rows = (
        " & ".join(map(escape, line)) + r" \\" for line in (section.heads, *section.lines)
    )
    room = LINES[layout.landscape]
    tables = []
    for start in range(0, len(rows), room):
        lines = rows[start : start + room]
        tabular = [
            rf"\begin{{tabular}}{{{'l' * len(section.heads)}}}",
            *(r"\toprule", heads, r"\midrule", *lines, r"\bottomrule"),
            r"\end{tabular}",
        ]
        text = rf"\caption{{{escape(f'{section.title}. {section.note}')}}}"
        after = _continued(section.title) if start else [text]
        body = [r"\small", _fitted("\n".join(tabular), layout), *after]
        tables.append(_environment("table", layout, body))
    return tables


def _conclusions(report: Report) -> list[Section]:
    """Differences, p-values and effect sizes where the columns are few enough to speak of each."""
    if not detailed(report):
        return []
    return [
        Section(
            conclusion.heading,
            ("verdict", "system", "difference", "corrected", "effect size"),
            [
                (verdict if place == 0 else "", *figures)
                for verdict, systems in conclusion.found.items()
                for place, figures in enumerate(systems)
            ],
            "Corrected p and paired effect size d as the table's caption tells.",
        )
        for conclusion in conclusions(report)
    ]


def _continued(text: str) -> list[str]:
    return [r"\addtocounter{table}{-1}", rf"\caption{{{escape(f'{text}, continued.')}}}"]


def _fitted(tabular: str, layout: Layout) -> str:
    """The tabular as it is, or scaled down to the line's width and to the height of a page."""
    height = TALLEST[layout.landscape]
    return (
        f"\\sbox0{{%\n{tabular}}}%\n"
        r"\ifdim\wd0>\linewidth\sbox0{\resizebox{\linewidth}{!}{\usebox0}}\fi%" + "\n"
        rf"\ifdim\dimexpr\ht0+\dp0\relax>{height}\resizebox*{{!}}{{{height}}}{{\usebox0}}"
        r"\else\usebox0\fi"
    )


def _figure(report: Report, path: str, layout: Layout) -> str:
    name = path.rpartition("/")[2].rpartition(".")[0].replace("-", " ")
    return _environment(
        "figure",
        layout,
        [
            r"\includegraphics[width=\linewidth,height=0.85\textheight,keepaspectratio]"
            rf"{{\detokenize{{{path}}}}}",
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


def _cell(shown: DisplayCell) -> str:
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

"""The report as LaTeX tables for pdflatex: booktabs and graphicx only, every name escaped."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from xsweep.orchestrator.report.caption import Style, caption, conclusions, detailed, notes, title
from xsweep.orchestrator.report.figures import captions
from xsweep.orchestrator.report.report import PLAIN, DisplayCell, Layout, Report, Section
from xsweep.orchestrator.report.table import Column

STYLE = Style(best="bold", second="underlined", better="↑", worse="↓")
SIGNS = {
    **{sign: rf"\{sign}" for sign in "{}_&%#$"},
    # at the start of a row these would be read as options of the \\ before them
    **{sign: f"{{{sign}}}" for sign in "[]*"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"|": r"\textbar{}", "–": "--", '"': "''", "<": "$<$", ">": "$>$", "−": "$-$"},
    **{"±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
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
FLOATS_PER_STANDALONE_PAGE = 6
"""A standalone document starts a new page after this number of floats: TeX holds back few."""


class Page(NamedTuple):
    """Room on a page beside a caption."""

    columns: int
    """Columns of one tabular, unless `max_columns` overrides it."""
    lines: int
    """Lines in \\small."""
    height: str
    """Maximal height of one tabular."""


UPRIGHT = Page(columns=6, lines=45, height=r"0.8\textheight")
NARROW = UPRIGHT._replace(columns=2)
LANDSCAPE = Page(columns=10, lines=28, height=r"0.46\linewidth")


def render_latex(report: Report, layout: Layout = PLAIN) -> str:
    """Table environments with captions and labels; they need `booktabs` and `graphicx`.

    Rotated ones also need `rotating`. Columns beyond `max_columns` continue in a further tabular
    below, or in a further table if the page is full; a tabular that is too wide is scaled down.
    """
    # text and figures of the rest would be too small in one of two columns
    rest = replace(layout, wide=layout.wide or layout.columns == 2)
    tables = [
        *_main_tables(report, layout),
        *(
            table
            for section in (*_conclusions(report), *report.sections)
            for table in _section_tables(section, rest)
        ),
        *(_figure(report, path, rest) for path in layout.figures),
    ]
    if not layout.standalone:
        return "\n".join(tables)
    two_columns = layout.wide or layout.columns == 2
    parts = [PREAMBLE % {"options": "[twocolumn]" if two_columns else ""}]
    for number, table in enumerate(tables, start=1):
        parts += [table, "\\clearpage\n" if number % FLOATS_PER_STANDALONE_PAGE == 0 else ""]
    return "".join([*parts, "\\end{document}\n"])


def escape(text: str) -> str:
    """Text that pdflatex prints literally; letters beyond Latin become their code points.

    `a_b & 50%` -> `a\\_b \\& 50\\%`.
    """
    return "".join(
        SIGNS.get(letter) or (letter if ord(letter) < 0x180 else f"{{[}}U+{ord(letter):04X}{{]}}")
        for letter in text
        if letter.isprintable() or letter == " "
    )


def _page(layout: Layout) -> Page:
    if layout.landscape:
        return LANDSCAPE
    return NARROW if layout.columns == 2 and not layout.wide else UPRIGHT


def _main_tables(report: Report, layout: Layout) -> list[str]:
    columns = report.table.columns
    step = layout.max_columns or _page(layout).columns
    tabulars = [
        _main_tabular(report, columns[start : start + step], start)
        for start in range(0, len(columns), step)
    ]
    stacked = max(1, _page(layout).lines // (len(report.table.rows) + len(report.heads)))
    pages = [tabulars[start : start + stacked] for start in range(0, len(tabulars), stacked)]
    text = " ".join([f"{title(report)}.", *caption(report, STYLE)])
    label = rf"\label{{tab:{re.sub('[^0-9A-Za-z]', '-', report.sweep)}}}"
    below = escape(" ".join(notes(report)))
    end = [rf"\caption{{{escape(text)}}}", label, rf"{{\footnotesize\raggedright {below}\par}}"]
    return _tables(title(report), end, pages, layout)


def _section_tables(section: Section, layout: Layout) -> list[str]:
    heads, *rows = (_line(map(escape, line)) for line in (section.heads, *section.lines))
    room = _page(layout).lines
    pages = [
        [_tabular("l" * len(section.heads), [heads, r"\midrule", *rows[start : start + room]])]
        for start in range(0, len(rows), room)
    ]
    text = rf"\caption{{{escape(f'{section.title}. {section.note}')}}}"
    return _tables(section.title, [text], pages, layout)


def _tables(
    name: str, end: Sequence[str], pages: Sequence[Sequence[str]], layout: Layout
) -> list[str]:
    """One table environment for each page's tabulars; later ones continue the first."""
    continued = [r"\addtocounter{table}{-1}", rf"\caption{{{escape(f'{name}, continued.')}}}"]
    return [
        _environment(
            "table",
            layout,
            [
                r"\small",
                "\n\\par\\medskip\n".join(_fitted(each, layout) for each in tabulars),
                *(continued if number else end),
            ],
        )
        for number, tabulars in enumerate(pages)
    ]


def _conclusions(report: Report) -> list[Section]:
    """Differences, p-values and effect sizes, if the columns are few enough to describe each."""
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
            "p is corrected as in the main table; d is the paired effect size.",
        )
        for conclusion in conclusions(report)
    ]


def _fitted(tabular: str, layout: Layout) -> str:
    """The tabular, scaled down if it exceeds the line's width or the page's height."""
    height = _page(layout).height
    return (
        f"\\sbox0{{%\n{tabular}}}%\n"
        r"\ifdim\wd0>\linewidth\sbox0{\resizebox{\linewidth}{!}{\usebox0}}\fi%" + "\n"
        rf"\ifdim\dimexpr\ht0+\dp0\relax>{height}\resizebox*{{!}}{{{height}}}{{\usebox0}}"
        r"\else\usebox0\fi"
    )


def _figure(report: Report, path: str, layout: Layout) -> str:
    name = path.rpartition("/")[2].rpartition(".")[0]
    about = captions(report).get(name, f"{name}.")
    picture = r"\includegraphics[width=\linewidth,height=0.85\textheight,keepaspectratio]"
    text = rf"\caption{{{escape(f'{report.sweep}: {about}')}}}"
    return _environment("figure", layout, [rf"{picture}{{\detokenize{{{path}}}}}", text])


def _environment(kind: str, layout: Layout, body: Sequence[str]) -> str:
    rotated = layout.landscape and kind == "table"
    name = ("sidewaystable" if rotated else kind) + ("*" if layout.wide else "")
    where = "" if rotated else "[tp]"
    lines = [rf"\begin{{{name}}}{where}", r"\centering", *body, rf"\end{{{name}}}"]
    return "\n".join(lines) + "\n"


def _main_tabular(report: Report, columns: Sequence[Column], start: int) -> str:
    labels = len(report.label_heads)
    lines = []
    levels = [level[start : start + len(columns)] for level in report.heads]
    for level in levels[:-1]:
        spans, rules, place = [], [], labels + 1
        for name, same in groupby(level):
            size = 2 * len(list(same))
            spans.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + size - 1}}}")
            place += size
        lines += ["& " * labels + _line(spans), "".join(rules)]
    names = (rf"\multicolumn{{2}}{{c}}{{{escape(name)}}}" for name in levels[-1])
    lines.append(_line([*map(escape, report.label_heads), *names]))
    for block in report.table.blocks:
        lines.append(r"\midrule")
        for row in block:
            label = report.label(row)
            if len(label) == 1:
                cells = [rf"\multicolumn{{{labels}}}{{l}}{{{escape(label[0])}}}"]
            else:
                first = label[0] if row is block[0] else ""
                cells = [escape(part) for part in (first, *label[1:])]
            lines.append(_line([*cells, *(_cell(report.shown(row, c)) for c in columns)]))
    # numbers to the right and marks to the left of an edge: they align at the decimal point
    return _tabular("l" * labels + "r@{}l" * len(columns), lines)


def _tabular(columns: str, lines: Sequence[str]) -> str:
    begin = rf"\begin{{tabular}}{{{columns}}}"
    return "\n".join([begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(shown: DisplayCell) -> str:
    if not shown.value:
        return rf"\multicolumn{{2}}{{c}}{{\textit{{{escape(shown.note)}}}}}"
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
    return f"{value} & {spread}" + (f"$^{{{arrows}}}$" if arrows else "") + note

"""The report as one HTML file: readable without network and without JavaScript.

Every number opens what stands behind it: seeds, jobs, commits. Sorting and filtering need a little
JavaScript, which is in the file; nothing else does.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.report.caption import Style, caption, conclusions, title
from orchestrator.report.figures import inline_figures
from orchestrator.report.provenance import SHORT, code_of, jobs_behind
from orchestrator.report.report import Report, Shown
from orchestrator.report.table import Column, Row, row_of

if TYPE_CHECKING:
    from db.results import Cell

PRINTED_COLUMNS = 6
"""So many fit on paper beside the labels."""
LETTER_PX, PADDING_PX = 9, 22
"""Mean width of a letter in the label columns, and their padding left and right together."""
STYLE = Style(best="bold", second="underlined", better="▲", worse="▼")


class Place(NamedTuple):
    """One place of the table with what its number was computed from."""

    shown: Shown
    mean: float | None
    comparisons: list[tuple[str, ...]]
    sources: list[dict[str, Any]]


def render_html(report: Report) -> str:
    """A page with the table, its caption, figures, conclusions, and every number's sources."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jobs: dict[tuple[Row, str], list[Cell]] = {}
    for cell in report.cells:
        jobs.setdefault((row_of(cell), cell.labels["collection"]), []).append(cell)
    styles, width = _label_styles(report)
    return environment.get_template("page.html.j2").render(
        title=title(report),
        heads=_spans(report.heads),
        label_heads=report.label_heads,
        label_styles=styles,
        label_width=width,
        print_tables=_print_tables(report),
        blocks=[
            [
                (report.label(row), [_place(report, jobs, row, c) for c in report.table.columns])
                for row in block
            ]
            for block in report.table.blocks
        ],
        caption=caption(report, STYLE),
        conclusions=conclusions(report),
        sections=report.sections,
        figures=inline_figures(report),
        jobs=jobs_behind(report.cells),
        short=SHORT,
    )


def _spans(heads: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    return [[(name, len(list(same))) for name, same in groupby(level)] for level in heads]


def _label_styles(report: Report) -> tuple[list[str], str]:
    """Label columns stay in sight while the table scrolls: the style of each, their width."""
    labels = [report.label_heads, *map(report.label, report.table.rows)]
    columns = zip(*(each for each in labels if len(each) == len(report.label_heads)), strict=True)
    styles, left_px = [], 0
    for column in columns:
        width_px = LETTER_PX * max(map(len, column))
        styles.append(f"left: {left_px}px; min-width: {width_px}px")
        left_px += width_px + PADDING_PX
    return styles, f"{left_px + PADDING_PX // 2}px"


def _print_tables(report: Report) -> list[dict[str, Any]]:
    """The table cut into pieces that paper has room for; none where it fits as it is."""
    columns = report.table.columns
    if len(columns) <= PRINTED_COLUMNS:
        return []
    return [
        {
            "heads": _spans([level[start : start + PRINTED_COLUMNS] for level in report.heads]),
            "blocks": [
                [
                    (
                        report.label(row),
                        [report.shown(row, c) for c in columns[start : start + PRINTED_COLUMNS]],
                    )
                    for row in block
                ]
                for block in report.table.blocks
            ],
        }
        for start in range(0, len(columns), PRINTED_COLUMNS)
    ]


def _place(
    report: Report, jobs: dict[tuple[Row, str], list["Cell"]], row: Row, column: Column
) -> Place:
    entry = report.table.entries.get((row, column))
    cells = [cell for name in column.collections for cell in jobs.get((row, name), [])]
    return Place(
        shown=report.shown(row, column),
        mean=entry.mean if entry and entry.means else None,
        comparisons=[
            (
                f"against {report.name(each.baseline)}",
                f"{each.difference:+.4f}",
                f"p {each.p:.2g}",
                f"corrected {each.p_corrected:.2g}",
                f"d {each.effect:.2f}",
                f"{each.queries} queries",
            )
            for each in report.compared.get((row, column), [])
        ],
        sources=[
            _source(cell, column)
            for cell in sorted(cells, key=lambda c: (c.labels.get("seed") or 0, c.job_id))
        ],
    )


def _source(cell: "Cell", column: Column) -> dict[str, Any]:
    """One evaluation: where its number came from, the training's and candidates' jobs included."""
    return {
        "seed": cell.labels.get("seed"),
        "collection": cell.labels["collection"],
        "value": cell.means.get(column.measure),
        "state": f"{cell.state} {cell.failure or ''}".strip(),
        "reason": cell.reason or "",
        "job": cell.identity[:SHORT],
        "known": bool(cell.provenance),
        "parents": [
            (role, parent.identity[:SHORT], bool(parent.provenance))
            for role, parent in sorted(cell.parents_summary.items())
        ],
        "code": code_of(cell.provenance) if cell.provenance else "",
        "per_query": f"{cell.folder}/per_query.json" if cell.folder else "",
    }

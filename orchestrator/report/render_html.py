"""The report as one HTML file that needs no network; every number opens its sources."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from xsweep.db.results import Cell, ParentResult
from xsweep.db.schema import State
from xsweep.orchestrator.forecast.catalog import mappings_in
from xsweep.orchestrator.report.caption import Style, caption, conclusions, notes, title
from xsweep.orchestrator.report.figures import inline_figures
from xsweep.orchestrator.report.report import PLAIN, Layout, Report
from xsweep.orchestrator.report.table import Column, Row, row_of

if TYPE_CHECKING:
    from jinja2 import Environment

SHORT = 12
"""Digits of an identity or commit that are shown: enough for `xsweep explain`."""
COLUMNS_PER_PRINTED_TABLE = 6
LETTER_PX, PADDING_PX = 9, 22
"""Mean width of a letter in the label columns; their padding, left and right together."""
STYLE = Style(best="bold", second="underlined", better="▲", worse="▼")


def render_html(report: Report, layout: Layout = PLAIN) -> str:
    """A page with table, caption, notes, figures, conclusions, sections, and all sources."""
    jobs: dict[tuple[Row, str], list[Cell]] = {}
    for cell in report.cells:
        if cell.state in (State.WAITING, State.READY):
            continue  # they say nothing yet, and a large sweep has many
        jobs.setdefault((row_of(cell.labels), cell.labels["collection"]), []).append(cell)
    styles, width = _label_styles(report)
    starts = range(0, len(report.table.columns), COLUMNS_PER_PRINTED_TABLE)
    pieces = [slice(at, at + COLUMNS_PER_PRINTED_TABLE) for at in starts] if len(starts) > 1 else []
    template = templates("xsweep.orchestrator.report").get_template("page.html.j2")
    return template.render(
        title=title(report),
        heads=_spans(report.heads),
        label_heads=report.label_heads,
        label_styles=styles,
        label_width=width,
        print_tables=[
            (piece, _spans([level[piece] for level in report.heads])) for piece in pieces
        ],
        blocks=[
            [
                (report.label(row), [_place(report, jobs, row, c) for c in report.table.columns])
                for row in block
            ]
            for block in report.table.blocks
        ],
        caption=" ".join(caption(report, STYLE)),
        notes=notes(report),
        conclusions=conclusions(report),
        sections=report.sections,
        figures=inline_figures(report),
        jobs=jobs_behind(report.cells),
        short=SHORT,
    )


def templates(*packages: str) -> "Environment":
    """The Jinja templates in packages; every value is escaped, an unknown name is an error."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _spans(heads: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    return [[(name, len(list(same))) for name, same in groupby(level)] for level in heads]


def _label_styles(report: Report) -> tuple[list[str], str]:
    """Styles that keep the label columns in sight while the table scrolls, and their width."""
    labels = [report.label_heads, *map(report.label, report.table.rows)]
    columns = zip(*(each for each in labels if len(each) == len(report.label_heads)), strict=True)
    styles, left_px = [], 0
    for column in columns:
        width_px = LETTER_PX * max(map(len, column))
        styles.append(f"left: {left_px}px; min-width: {width_px}px")
        left_px += width_px + PADDING_PX
    return styles, f"{left_px + PADDING_PX // 2}px"


def _place(
    report: Report, jobs: dict[tuple[Row, str], list[Cell]], row: Row, column: Column
) -> dict[str, Any]:
    """One cell of the table with the sources of its number."""
    entry = report.table.result(row, column)
    cells = [cell for name in column.collections for cell in jobs.get((row, name), [])]
    return {
        "shown": report.shown(row, column),
        "mean": entry.mean if entry else None,
        "comparisons": [
            (
                f"compared with {report.name(each.baseline)}",
                f"{each.difference:+.4f}",
                f"p {each.p:.2g}",
                f"corrected {each.p_corrected:.2g}",
                f"d {each.effect:.2f}",
                f"{each.queries} queries",
            )
            for each in report.compared.get((row, column), [])
        ],
        "sources": [
            _source(cell, column)
            for cell in sorted(cells, key=lambda c: (c.labels.get("seed") or 0, c.job_id))
        ],
    }


def _source(cell: Cell, column: Column) -> dict[str, Any]:
    """One evaluation with the jobs of its training and candidates."""
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


def jobs_behind(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """The evaluations and the jobs that they were made from, each once, by name.

    `made` is start time, hardware and precision; `data` the data in the job's spec, with checksums
    or versions; `folder` is relative to the store; `manifest` the SHA-256 of the list of its files.
    """
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        behind: list[Cell | ParentResult] = [cell, *cell.parents_summary.values()]
        for job in behind:
            if job.provenance and job.identity not in found:
                found[job.identity] = {
                    "identity": job.identity,
                    "name": job.name,
                    "code": code_of(job.provenance),
                    "made": _made(job.provenance),
                    "data": list(dict.fromkeys(data_of(job.provenance.get("spec", {})))),
                    "folder": job.folder,
                    "manifest": job.manifest_sha256,
                }
    return sorted(found.values(), key=lambda job: (job["name"], job["identity"]))


def code_of(provenance: Mapping[str, Any]) -> str:
    """`0123456789ab with local changes`, or the version if the code was not in a git tree."""
    source = provenance.get("source") or {}
    if commit := source.get("commit", ""):
        return commit[:SHORT] + (" with local changes" if source.get("dirty") else "")
    return f"xsweep {provenance.get('xsweep', 'unknown')}"


def data_of(spec: Any) -> Iterator[str]:
    """Files, folders, packages and data sets anywhere in a spec: `triples.tsv md5 4d99...`."""
    for each in mappings_in(spec):
        location = each.get("path") or each.get("folder")
        sums = [f"{kind} {each[kind]}" for kind in ("md5", "sha256") if each.get(kind)]
        if isinstance(location, str):
            yield " ".join([PurePath(location).name, *(sums or ["without a declared checksum"])])
        elif each.get("source") == "irds":
            yield f"ir_datasets {each.get('id')}"
        elif each.get("source") == "apidocs":
            versions = ", ".join(f"{name} {v}" for name, v in (each.get("versions") or {}).items())
            yield f"{each.get('name')} ({versions or 'installed versions'})"
        elif each.get("package"):
            yield f"package {each['package']} {each.get('version') or ''}".rstrip()
        elif isinstance(each.get("id"), str):
            yield f"{each['id']} {each.get('revision') or ''}".rstrip()


def _made(provenance: Mapping[str, Any]) -> str:
    hardware = provenance.get("hardware") or {}
    device = ", ".join(hardware.get("gpus") or []) or hardware.get("cpu")
    torch = (provenance.get("packages") or {}).get("torch")
    started, precision = str(provenance.get("started", "")), provenance.get("precision")
    return ", ".join(filter(None, [started, device, torch and f"torch {torch}", precision]))

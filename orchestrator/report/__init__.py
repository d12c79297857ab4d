"""Reports of accepted results: select evaluations, build a table, render it in a format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Engine

from xsweep.db.results import Cell, load_cells, load_costs
from xsweep.errors import ConfigError, unknown_name
from xsweep.evaluator.specs import parse_measure
from xsweep.orchestrator.report.cost import cost_section
from xsweep.orchestrator.report.effects import with_effects
from xsweep.orchestrator.report.reference import reference_section
from xsweep.orchestrator.report.render_data import render_csv, render_json
from xsweep.orchestrator.report.render_html import render_html
from xsweep.orchestrator.report.render_latex import render_latex
from xsweep.orchestrator.report.render_text import render_markdown, render_text
from xsweep.orchestrator.report.report import PLAIN, Layout, Report, ReportOptions
from xsweep.orchestrator.report.significance import compare_rows, find_baselines
from xsweep.orchestrator.report.table import build_table, complete_suites, natural_key

FORMATS: dict[str, Callable[[Report, Layout], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "latex": render_latex,
    "csv": render_csv,
    "json": render_json,
    "html": render_html,
}
"""Every output format and its renderer."""
DEFAULTS = ReportOptions()


def load_report(engine: Engine, sweep: str, options: ReportOptions = DEFAULTS) -> Report:
    """The report of a sweep's accepted results: equal databases and options give equal reports.

    Raises ConfigError, with the known names, for anything in the options that the sweep lacks.
    """
    names, cells = load_measures(engine, sweep, options.measures)
    report = build_report(cells, sweep, replace(options, measures=names))
    if options.effects:
        report = with_effects(report)
    sections = [cost_section(report, load_costs(engine, sweep))] if options.cost else []
    sections += [reference_section(report, name) for name in options.compare_to]
    return replace(report, sections=(*report.sections, *sections))


def load_measures(
    engine: Engine, sweep: str, measures: Sequence[str]
) -> tuple[list[str], list[Cell]]:
    """Canonical names of the measures, and the sweep's evaluations with their values.

    If one of them is not stored, the evaluations have all measures, for the error message. Raises
    ConfigError for an unknown sweep or an unknown measure.
    """
    names = list(dict.fromkeys(str(parse_measure(measure)) for measure in measures))
    cells = load_cells(engine, sweep, names)
    if any(all(name not in cell.means for cell in cells) for name in names):
        cells = load_cells(engine, sweep)
    return names, cells


def build_report(cells: Sequence[Cell], sweep: str, options: ReportOptions = DEFAULTS) -> Report:
    """The report of evaluations, which may come in any order, without further sections."""
    kept = select(sorted(cells, key=lambda cell: cell.identity), options.where)
    collections = {cell.labels["collection"] for cell in kept}
    suites = complete_suites(collections) if options.by == "suite" else None
    table = build_table(kept, options.measures, suites)
    baselines = find_baselines(table, options.baselines)
    return Report(
        sweep=sweep,
        options=options,
        cells=tuple(kept),
        table=table,
        baselines=baselines,
        comparisons=compare_rows(table, baselines, options),
    )


def select(cells: Sequence[Cell], where: Mapping[str, Sequence[str]]) -> list[Cell]:
    """The cells that meet every condition (label -> accepted values, compared as text).

    First stages and teachers are kept: only conditions on `collection` and `system` apply to them.
    Raises ConfigError for a label or value that no cell has.
    """
    for label, values in where.items():
        concerned = [cell.labels.get(label) for cell in cells if _applies(label, cell)]
        known = sorted({str(value) for value in concerned if value is not None}, key=natural_key)
        if not known:
            labels = sorted({label for cell in cells for label in cell.labels})
            raise unknown_name(f"no evaluation has a label {label!r}", label, labels)
        for value in values:
            if value not in known:
                raise unknown_name(f"no evaluation has {label} {value!r}", value, known)
    return [
        cell
        for cell in cells
        if all(
            str(cell.labels.get(label)) in values
            for label, values in where.items()
            if _applies(label, cell)
        )
    ]


def _applies(label: str, cell: Cell) -> bool:
    return cell.labels["system"] == "run" or label in ("collection", "system")


def render(report: Report, format: str, layout: Layout = PLAIN) -> str:
    """The report in one of `FORMATS`. Raises ConfigError for another."""
    check_format(format)
    return FORMATS[format](report, layout)


def check_format(format: str) -> None:
    """Raises ConfigError for an unknown format."""
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")

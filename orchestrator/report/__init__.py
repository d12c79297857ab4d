"""Reports of accepted results: select evaluations, build a table, render it in a format."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from sqlalchemy import Engine

from xsweep.db.results import Cell, load_cells, load_costs
from xsweep.db.schema import State
from xsweep.db.status import count_evaluations
from xsweep.errors import ConfigError, DataError, unknown_name
from xsweep.evaluator.measure_names import parse_measure
from xsweep.orchestrator.report.cost import cost_section
from xsweep.orchestrator.report.effects import with_effects
from xsweep.orchestrator.report.reference import reference_section
from xsweep.orchestrator.report.render_data import render_csv, render_json
from xsweep.orchestrator.report.render_html import render_html
from xsweep.orchestrator.report.render_latex import render_latex
from xsweep.orchestrator.report.render_text import render_markdown, render_text
from xsweep.orchestrator.report.report import PLAIN, Layout, Report, ReportOptions
from xsweep.orchestrator.report.significance import compare_rows, find_baselines
from xsweep.orchestrator.report.table import (
    Row,
    build_table,
    complete_suites,
    natural_key,
    nothing_accepted,
    row_of,
)

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


def load_report(
    engine: Engine, sweep: str | Sequence[str], options: ReportOptions = DEFAULTS
) -> Report:
    """The report of a sweep's accepted results, or of several sweeps' in one table (see `join`).

    Equal databases and options give equal reports. Raises ConfigError, with the known names, for
    anything in the options that the sweep lacks.
    """
    sweeps = [sweep] if isinstance(sweep, str) else list(dict.fromkeys(sweep))
    if options.cost and len(sweeps) > 1:
        raise ConfigError("--cost: the hours of one sweep at a time")
    names, cells, notes = load_measures(engine, sweeps, options.measures)
    report = build_report(cells, " and ".join(sweeps), replace(options, measures=names))
    report = replace(report, notes=notes)
    if options.effects:
        report = with_effects(report)
    sections = [cost_section(report, load_costs(engine, sweeps[0]))] if options.cost else []
    sections += [reference_section(report, name) for name in options.compare_to]
    return replace(report, sections=(*report.sections, *sections))


def load_measures(
    engine: Engine, sweeps: Sequence[str], measures: Sequence[str]
) -> tuple[list[str], list[Cell], tuple[str, ...]]:
    """Canonical names of the measures, the sweeps' evaluations, and notes for the caption.

    If a measure is not stored, the evaluations have all measures, for the error message. Raises
    ConfigError for an unknown sweep or an unknown measure.
    """
    names = list(dict.fromkeys(str(parse_measure(measure)) for measure in measures))
    states = sum((count_evaluations(engine, sweep) for sweep in sweeps), Counter[str]())
    if not states[State.DONE]:
        counts = (f"{count} {state}" for state, count in sorted(states.items()))
        raise nothing_accepted(", ".join(counts))
    found = {sweep: load_cells(engine, sweep, names) for sweep in sweeps}
    if any(all(name not in cell.means for cell in chain(*found.values())) for name in names):
        found = {sweep: load_cells(engine, sweep) for sweep in sweeps}
    if len(found) == 1:
        return names, found.popitem()[1], ()
    return names, *join(found)


def join(found: Mapping[str, Sequence[Cell]]) -> tuple[list[Cell], tuple[str, ...]]:
    """Evaluations of several sweeps for one table, and sentences about their queries.

    An evaluation that sweeps share counts once. Where they have different ones for a row, its
    objective (or the name of a reference row) gets the sweep's name: `infonce [second]`. Values are
    over the queries that all evaluations of a collection have. Raises DataError if there are none.
    """
    identities: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    shared: dict[str, set[str]] = {}
    every: dict[str, set[str]] = defaultdict(set)
    for cell in chain(*found.values()):
        collection, ids = cell.labels["collection"], set(cell.query_ids)
        if cell.state != "cancelled":
            identities[row_of(cell.labels), collection, cell.labels.get("seed")].add(cell.identity)
        if ids:
            shared[collection] = shared.get(collection, ids) & ids
            every[collection] |= ids
    for collection, ids in shared.items():
        if not ids:
            raise DataError(f"the sweeps have no query of {collection} in common: report one")
    apart = {row for (row, *_), different in identities.items() if len(different) > 1}
    cells: dict[tuple[Row, str], Cell] = {}
    for number, (sweep, members) in enumerate(found.items()):
        for cell in members:
            labels = cell.labels | {"order": number * 10**9 + cell.labels.get("order", 0)}
            if (row := row_of(labels)) in apart:
                key = "objective" if row.system == "run" else row.system
                labels[key] = f"{row.objective or row.model} [{sweep}]"
            kept = _over(shared.get(labels["collection"], set()), cell)
            cells.setdefault((row_of(labels), cell.identity), replace(kept, labels=labels))
    notes = tuple(
        f"Only the {len(shared[name])} of {len(ids)} queries of {name} count that all its "
        "evaluations have; recall and queries without results are over each one's own."
        for name, ids in every.items()
        if ids > shared[name]
    )
    return list(cells.values()), notes


def _over(queries: set[str], cell: Cell) -> Cell:
    """The evaluation over some of its queries."""
    places = [place for place, query_id in enumerate(cell.query_ids) if query_id in queries]
    if len(places) == len(cell.query_ids):
        return cell
    scores = {measure: values_Q[places] for measure, values_Q in cell.scores.items()}
    return replace(
        cell,
        query_ids=tuple(cell.query_ids[place] for place in places),
        scores=scores,
        means={measure: float(values_Q.mean()) for measure, values_Q in scores.items()},
    )


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

"""Tables from accepted results, for terminals, papers and programs: `render` makes them all.

From a sweep's evaluations to a report: which of them, in which columns, against whom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xsweep.errors import ConfigError, did_you_mean
from xsweep.orchestrator.report.report import FORMATS, PLAIN, Layout, Report
from xsweep.orchestrator.report.significance import compare_rows, find_baselines
from xsweep.orchestrator.report.table import build_table, complete_suites, natural

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.results import Cell
    from xsweep.orchestrator.report.report import Report


def build_report(
    cells: Sequence["Cell"],
    *,
    sweep: str,
    measures: Sequence[str] = ("nDCG@10",),
    by: str = "collection",
    baselines: Sequence[str] = ("first_stage",),
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
    digits: int = 3,
    percent: bool = False,
    where: Mapping[str, Sequence[str]] | None = None,
    best: str = "column",
    pairs: bool = False,
) -> Report:
    """The report of evaluations in whatever order they come.

    `where` is a choice among them, see `select`; the rest of the options are `render`'s.

    Raises ConfigError for what the cells cannot answer, naming what they could.
    """
    if by not in ("collection", "suite"):
        raise ConfigError(f"unknown grouping {by!r}: columns are made by collection or suite")
    if best not in ("column", "block"):
        raise ConfigError(f"best of each {best!r}: best and second are found per column or block")
    if not 1 <= digits <= 10:
        raise ConfigError(f"{digits} digits: give 1 to 10")
    kept = select(sorted(cells, key=lambda cell: cell.identity), where or {})
    collections = {cell.labels["collection"] for cell in kept}
    table = build_table(kept, measures, complete_suites(collections) if by == "suite" else None)
    rows = find_baselines(table, baselines)
    return Report(
        sweep=sweep,
        cells=tuple(kept),
        table=table,
        baselines=rows,
        comparisons=compare_rows(
            table, rows, alpha=alpha, correction=correction, test=test, pairs=pairs
        ),
        alpha=alpha,
        correction=correction,
        test=test,
        digits=digits,
        percent=percent,
        by=by,
        best=best,
        pairs=pairs,
        where={label: tuple(values) for label, values in (where or {}).items()},
    )


def select(cells: Sequence["Cell"], where: Mapping[str, Sequence[str]]) -> list["Cell"]:
    """The cells that pass every condition (label -> accepted values, compared as text).

    First stages and teachers stay whatever the conditions on runs are: only `collection` and
    `system` concern them. Raises ConfigError for a label or value that no cell has.
    """
    for label, values in where.items():
        concerned = [cell.labels.get(label) for cell in cells if _concerns(label, cell)]
        known = sorted({str(value) for value in concerned if value is not None}, key=natural)
        if not known:
            labels = sorted({label for cell in cells for label in cell.labels})
            raise ConfigError(
                f"no evaluation has a label {label!r}: use one of {', '.join(labels)}"
            )
        for value in values:
            if value not in known:
                hint = did_you_mean(value, known)
                raise ConfigError(
                    f"no evaluation has {label} {value!r}"
                    + (f"; {hint}" if hint else ".")
                    + f" There are: {', '.join(known)}"
                )
    return [
        cell
        for cell in cells
        if all(
            str(cell.labels.get(label)) in values
            for label, values in where.items()
            if _concerns(label, cell)
        )
    ]


def _concerns(label: str, cell: "Cell") -> bool:
    return cell.labels["system"] == "run" or label in ("collection", "system")


def render(engine: "Engine", sweep: str, *, format: str = "text", **options: Any) -> str:
    """The report of a sweep's accepted results: same database and options, same text.

    Options are those of `load_report` and the fields of `Layout`. Raises ConfigError.
    """
    check_format(format)
    layout = {name: options.pop(name) for name in Layout.__annotations__ if name in options}
    return write(load_report(engine, sweep, **options), format, Layout(**layout))


def load_report(
    engine: "Engine",
    sweep: str,
    *,
    measures: Sequence[str] = ("nDCG@10",),
    by: str = "collection",
    baseline: str | Sequence[str] = "first_stage",
    pairs: bool = False,
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
    best: str = "column",
    digits: int = 3,
    percent: bool = False,
    where: Mapping[str, Sequence[str]] | None = None,
    effects: bool = False,
    cost: bool = False,
    compare_to: str | Sequence[str] = (),
) -> "Report":
    """The numbers and sections of a sweep's accepted results, in no format yet.

    `by` is `collection` or `suite`; `baseline` one or several names (`first_stage`, `teacher`, a
    row's name); `pairs` tests all pairs of a backbone's systems, too; `best` is found per `column`
    or per `block` of a backbone; `where` keeps the runs whose labels have one of the given values.
    `effects` adds what the choices are worth, `cost` what they took, `compare_to` the published
    figures of reference files.

    Raises ConfigError for whatever of this the sweep cannot answer, naming what it could.
    """
    pass
    from xsweep.orchestrator.report.cost import with_cost
    from xsweep.orchestrator.report.effects import with_effects
    from xsweep.orchestrator.report.reference import reference_section

    names, cells = load_measures(engine, sweep, measures)
    report = build_report(
        cells,
        sweep=sweep,
        measures=names,
        by=by,
        baselines=[baseline] if isinstance(baseline, str) else baseline,
        pairs=pairs,
        alpha=alpha,
        correction=correction,
        test=test,
        best=best,
        digits=digits,
        percent=percent,
        where=where or {},
    )
    if effects:
        report = with_effects(report)
    if cost:
        report = with_cost(report, engine)
    references = [compare_to] if isinstance(compare_to, str) else compare_to
    compared = [reference_section(report, name) for name in references]
    return replace(report, sections=(*report.sections, *compared))


def load_measures(
    engine: "Engine", sweep: str, measures: Sequence[str]
) -> "tuple[list[str], list[Cell]]":
    """The measures' own names, and the sweep's evaluations with their values alone.

    Where one of them is stored nowhere the evaluations have all that there is, so that a message
    can say it. Raises ConfigError for an unknown sweep or a name that is no measure.
    """
    from xsweep.db.results import load_cells
    from xsweep.evaluator.specs import parse_measure

    names = list(dict.fromkeys(str(parse_measure(measure)) for measure in measures))
    cells = load_cells(engine, sweep, names)
    if any(all(name not in cell.means for cell in cells) for name in names):
        cells = load_cells(engine, sweep)
    return names, cells


def write(report: "Report", format: str, layout: Layout = PLAIN) -> str:
    """The report in one of `FORMATS`."""
    from xsweep.orchestrator.report.render_data import render_csv, render_json
    from xsweep.orchestrator.report.render_html import render_html
    from xsweep.orchestrator.report.render_latex import render_latex
    from xsweep.orchestrator.report.render_text import render_markdown, render_text

    check_format(format)
    match format:
        case "text":
            return render_text(report, width=layout.width)
        case "markdown":
            return render_markdown(report)
        case "latex":
            return render_latex(report, layout)
        case "csv":
            return render_csv(report)
        case "html":
            return render_html(report)
    return render_json(report)


def check_format(format: str) -> None:
    """Raises ConfigError for a format that there is not."""
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")

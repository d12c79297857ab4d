"""Tables from accepted results, for terminals, papers and programs: `render` makes them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xsweep import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from db.results import Cell
    from orchestrator.report.report import Report

FORMATS = ("text", "markdown", "latex", "csv", "json", "html")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a report is laid out; every format takes what concerns it."""

    width: int = 110
    """Characters of a line of text."""
    standalone: bool = False
    """LaTeX: a document that compiles by itself."""
    wide: bool = False
    """LaTeX: across both columns of a two-column page."""
    landscape: bool = False
    """LaTeX: turned by 90 degrees, on a page of its own."""
    max_columns: int = 0
    """LaTeX: columns of one tabular, more continue below; 0 for 6, or 10 in landscape."""
    figures: tuple[str, ...] = ()
    """LaTeX: picture files to include, as the document will find them."""


PLAIN = Layout()


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
    from orchestrator.report.build import build_report
    from orchestrator.report.cost import with_cost
    from orchestrator.report.effects import with_effects
    from orchestrator.report.reference import reference_section

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
    from db.results import load_cells
    from evaluator.measure_names import parse_measure

    names = list(dict.fromkeys(str(parse_measure(measure)) for measure in measures))
    cells = load_cells(engine, sweep, names)
    if any(all(name not in cell.means for cell in cells) for name in names):
        cells = load_cells(engine, sweep)
    return names, cells


def write(report: "Report", format: str, layout: Layout = PLAIN) -> str:
    """The report in one of `FORMATS`."""
    from orchestrator.report.data import render_csv, render_json
    from orchestrator.report.html import render_html
    from orchestrator.report.latex import render_latex
    from orchestrator.report.markdown import render_markdown
    from orchestrator.report.text import render_text

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

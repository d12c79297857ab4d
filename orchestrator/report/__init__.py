"""Tables from accepted results, for terminals, papers and programs: `render` makes them all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xsweep import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

FORMATS = ("text", "markdown", "latex", "csv", "json", "html")


def render(
    engine: "Engine",
    sweep: str,
    *,
    format: str = "text",
    measures: Sequence[str] = ("nDCG@10",),
    by: str = "collection",
    baseline: str | Sequence[str] = "first_stage",
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
    digits: int = 3,
    percent: bool = False,
    where: Mapping[str, Sequence[str]] | None = None,
    width: int = 110,
    standalone: bool = False,
    wide: bool = False,
    max_columns: int = 6,
    effects: bool = False,
    compare_to: str | None = None,
) -> str:
    """The report of a sweep's accepted results: same database and options, same text.

    `by` is `collection` or `suite`; `baseline` one or several names (`first_stage`, `teacher`, a
    row's name); `where` keeps the runs whose labels have one of the given values; `width` is for
    text, `standalone`, `wide` and `max_columns` (of one tabular) for LaTeX. `effects` adds what the
    choices are worth, `compare_to` the published figures of a reference file.

    Raises ConfigError for whatever of this the sweep cannot answer, naming what it could.
    """
    from db.results import load_cells
    from evaluator.measure_names import parse_measure
    from orchestrator.report.build import build_report
    from orchestrator.report.data import render_csv, render_json
    from orchestrator.report.effects import effect_sections
    from orchestrator.report.html import render_html
    from orchestrator.report.latex import render_latex
    from orchestrator.report.markdown import render_markdown
    from orchestrator.report.reference import reference_section
    from orchestrator.report.text import render_text

    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    names = [str(parse_measure(measure)) for measure in measures]
    cells = load_cells(engine, sweep, names)
    if any(all(name not in cell.means for cell in cells) for name in names):
        cells = load_cells(
            engine, sweep
        )  # with everything, so that the message can say what there is
    report = build_report(
        cells,
        sweep=sweep,
        measures=names,
        by=by,
        baselines=[baseline] if isinstance(baseline, str) else baseline,
        alpha=alpha,
        correction=correction,
        test=test,
        digits=digits,
        percent=percent,
        where=where or {},
    )
    sections = effect_sections(report) if effects else ()
    if compare_to:
        sections = (*sections, reference_section(report, compare_to))
    report = replace(report, sections=sections)
    match format:
        case "text":
            return render_text(report, width=width)
        case "markdown":
            return render_markdown(report)
        case "latex":
            return render_latex(report, standalone=standalone, wide=wide, max_columns=max_columns)
        case "csv":
            return render_csv(report)
        case "html":
            return render_html(report)
    return render_json(report)

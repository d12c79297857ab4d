"""`report`, the tables of a sweep, and `compare`, two of its systems query by query."""

import os
import shutil
import sys
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xsweep.errors import ConfigError, XsweepError
from xsweep.orchestrator.cli.app import (
    app,
    complete_sweeps,
    format_option,
    measure_option,
    open_database,
    settings_of,
    sweep_argument,
)

if TYPE_CHECKING:
    from xsweep.db.results import Cell
    from xsweep.orchestrator.report.compare import Texts

MANY_EVALUATIONS = 20_000
"""A report of more takes over a second."""
MIN_WIDTH = 60
_table = partial(typer.Option, rich_help_panel="Table")
_tests = partial(typer.Option, rich_help_panel="Significance")
_sections = partial(typer.Option, rich_help_panel="Further sections")
_latex = partial(typer.Option, rich_help_panel="LaTeX")
Measures = Annotated[list[str] | None, measure_option(help="May be repeated; nDCG@10 by default.")]
Seeds = Annotated[str | None, _table(help="Only these seeds, such as 12,13.")]
Digits = Annotated[int, _table(min=1, max=6, help="Decimals of a figure.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file, not to the terminal.")
]


def _report_formats() -> list[str]:
    from xsweep.orchestrator.report import FORMATS

    return list(FORMATS)


@app.command()
def report(
    ctx: typer.Context,
    sweep: Annotated[
        list[str] | None,
        sweep_argument(help="Sweeps (default: the newest). LABEL=VALUE is as --where."),
    ] = None,
    format: Annotated[
        str,
        format_option(
            help="text, markdown, latex, csv, json or html.", autocompletion=_report_formats
        ),
    ] = "text",
    output: Output = None,
    measure: Measures = None,
    by: Annotated[str, _table(help="Columns: collection or suite.")] = "collection",
    best: Annotated[str, _table(help="Best and second of each column or block.")] = "column",
    digits: Digits = 3,
    percent: Annotated[bool, _table("--percent", help="0.534 as 53.4.")] = False,
    where: Annotated[
        list[str] | None,
        _table(
            metavar="LABEL=VALUE,... ...",
            help="Only runs with these labels, such as group=small backbone=A,B.",
        ),
    ] = None,
    seeds: Seeds = None,
    baseline: Annotated[
        list[str] | None,
        _tests(help="first_stage, teacher, a row's name or none; may be repeated."),
    ] = None,
    pairs: Annotated[
        bool, _tests("--pairs", help="Also test all pairs of a backbone's systems.")
    ] = False,
    test: Annotated[str, _tests(help="t (paired) or randomization.")] = "t",
    correction: Annotated[str, _tests(help="holm, bonferroni, bh or none.")] = "holm",
    alpha: Annotated[float, _tests(help="Level of significance.", min=0, max=1)] = 0.05,
    effects: Annotated[
        bool, _sections("--effects", help="Add the effect of each choice, others equal.")
    ] = False,
    cost: Annotated[bool, _sections("--cost", help="Add the hours of training.")] = False,
    compare_to: Annotated[
        list[str] | None,
        _sections(help="Add the published results of a reference file; may be repeated."),
    ] = None,
    figures: Annotated[
        Path | None, _sections(help="Draw figures as PDF into this folder; LaTeX includes them.")
    ] = None,
    standalone: Annotated[bool, _latex("--standalone", help="A complete document.")] = False,
    wide: Annotated[bool, _latex("--wide", help="Span both columns of a two-column page.")] = False,
    columns: Annotated[
        int,
        _latex(
            help="Columns of your paper's pages: with 2, the main table fits one.", min=1, max=2
        ),
    ] = 1,
    landscape: Annotated[bool, _latex("--landscape", help="Rotate tables by 90 degrees.")] = False,
    max_columns: Annotated[
        int,
        _latex(help="Columns of a tabular (default: 6; landscape: 10; two columns: 2).", min=0),
    ] = 0,
) -> None:
    """Table of a sweep's accepted results, with significance against the baselines.

    \b
    Examples:
      xsweep report
      xsweep report quickstart --measure nDCG@10 --measure RR@10
      xsweep report quickstart mine
      xsweep report quickstart --format latex --standalone --figures figures -o table.tex
      xsweep report quickstart --format latex --columns 2 -o narrow.tex
      xsweep report quickstart --format html --effects --cost -o report.html
      xsweep report quickstart --baseline "MiniLM-L3 bce" --where group=small objective=bce,hinge
    """
    from xsweep.db.explain import only_sweep
    from xsweep.db.status import count_evaluations
    from xsweep.orchestrator.report import check_format, load_report, render
    from xsweep.orchestrator.report.figures import save_figures
    from xsweep.orchestrator.report.report import Layout, ReportOptions

    check_format(format)
    # `--where a=1 b=2` leaves its second pair to the arguments
    names = [argument for argument in sweep or [] if "=" not in argument]
    conditions = [*(where or []), *(argument for argument in sweep or [] if "=" in argument)]
    options = ReportOptions(
        **_same_named(ctx, ReportOptions)
        | {
            "measures": measure or ReportOptions.measures,
            "where": _conditions(conditions, seeds),
            "baselines": [] if baseline == ["none"] else baseline or ReportOptions.baselines,
            "compare_to": compare_to or (),
        }
    )
    engine = open_database(ctx, read_only=True)
    names = names or [only_sweep(engine, None)]
    states = sum((count_evaluations(engine, name) for name in names), Counter[str]())
    if (evaluations := states.total()) > MANY_EVALUATIONS and states["done"]:
        typer.echo(f"Reading {evaluations:,} evaluations takes a few seconds.", err=True)
    found = load_report(engine, names, options)
    drawn: list[str] = []
    if figures is not None:
        folder = output.parent if output else Path()
        paths = save_figures(found, figures)
        drawn = [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]
        typer.echo(f"Wrote {len(drawn)} figures to {figures}", err=output is None)
    width = Layout.width
    # files always get the same text, and pipes unless COLUMNS is set
    if output is None and (sys.stdout.isatty() or "COLUMNS" in os.environ):
        width = max(shutil.get_terminal_size((width, 24)).columns, MIN_WIDTH)
    layout = Layout(**_same_named(ctx, Layout) | {"width": width, "figures": tuple(drawn)})
    _write(render(found, format, layout), output)


@app.command()
def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A row of the report, or first_stage.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The row to compare it with.")],
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="The newest by default; may be repeated.", autocompletion=complete_sweeps
        ),
    ] = None,
    measure: Measures = None,
    collection: Annotated[
        list[str] | None, typer.Option(help="Only this collection; may be repeated.")
    ] = None,
    seeds: Seeds = None,
    top: Annotated[int, typer.Option(help="Largest changes to show each way.", min=0)] = 5,
    digits: Digits = 3,
    format: Annotated[
        str,
        format_option(
            help="text, markdown, csv (all queries) or json.",
            autocompletion=lambda: ("text", "markdown", "csv", "json"),
        ),
    ] = "text",
    output: Output = None,
) -> None:
    """Two systems query by query: wins, losses, and the largest changes with their texts.

    \b
    Examples:
      xsweep compare "MiniLM-L6 infonce" first_stage
      xsweep compare "MiniLM-L6 infonce" "MiniLM-L6 margin_mse" --top 20
      xsweep compare "BERT-Base bce" "BERT-Base hinge" --sweep full_grid -f csv -o queries.csv
    """
    from xsweep.db.explain import only_sweep
    from xsweep.orchestrator.report import load_measures, select
    from xsweep.orchestrator.report.compare import FORMATS, compare_systems, render_differences

    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    engine = open_database(ctx, read_only=True)
    sweeps = sweep or [only_sweep(engine, None)]
    measures, cells, _ = load_measures(engine, sweeps, measure or ["nDCG@10"])
    store = settings_of(ctx).store
    one, other, found = compare_systems(
        select(cells, _conditions([f"collection={each}" for each in collection or []], seeds)),
        a,
        b,
        measures=measures,
        texts=lambda cell: _query_texts(store, cell),
    )
    text = render_differences(
        " and ".join(sweeps), (one, other), found, format=format, top=top, digits=digits
    )
    _write(text, output)


def _same_named(ctx: typer.Context, options: type) -> dict[str, Any]:
    """The command's parameters that are fields of a dataclass."""
    return {each.name: ctx.params[each.name] for each in fields(options) if each.name in ctx.params}


def _conditions(where: list[str], seeds: str | None) -> dict[str, list[str]]:
    """Label -> accepted values; values of one label accumulate."""
    chosen: dict[str, list[str]] = {}
    for pair in [*where, *([f"seed={seeds}"] if seeds is not None else [])]:
        label, equals, values = pair.partition("=")
        if not equals:
            raise ConfigError(f"--where {pair!r}: write label=value, such as group=small")
        chosen.setdefault(label, []).extend(each.strip() for each in values.split(","))
    return chosen


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {output}")


def _query_texts(store: str, cell: "Cell") -> "Texts":
    """Texts of an evaluation's queries; none, with a warning, if the store is not available."""
    from xsweep.orchestrator.report.compare import query_texts
    from xsweep.orchestrator.storage.store import store_at

    try:
        return query_texts(store_at(store), cell)
    except (XsweepError, OSError) as error:
        typer.echo(f"no query texts of {cell.labels['collection']}: {error}", err=True)
        return {}

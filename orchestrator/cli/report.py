"""`report`: the tables of a sweep.

`compare`: two systems of a sweep, query by query.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xsweep.errors import ConfigError, XsweepError
from xsweep.orchestrator.cli.app import app, only_sweep, open_database, settings_of

if TYPE_CHECKING:
    from xsweep.db.results import Cell


TABLE, TESTS, MORE, LATEX = "Table", "Significance", "Further sections", "LaTeX"
"""Panels of options in `--help`."""
NARROWEST = 60


@app.command()
def report(
    ctx: typer.Context,
    sweep: Annotated[
        list[str] | None,
        typer.Argument(help="A sweep; without it, the newest. LABEL=VALUE here is as --where."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown, latex, csv, json or html.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not to the terminal.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", help="May be repeated; nDCG@10 unless given."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Columns: collection or suite.", rich_help_panel=TABLE)
    ] = "collection",
    best: Annotated[
        str,
        typer.Option(help="Best and second of each column or block.", rich_help_panel=TABLE),
    ] = "column",
    digits: Annotated[int, typer.Option(min=1, max=6, rich_help_panel=TABLE)] = 3,
    percent: Annotated[
        bool, typer.Option("--percent", help="0.534 as 53.4.", rich_help_panel=TABLE)
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VALUE,... ...",
            help="Only runs with these labels, such as group=small backbone=A,B.",
            rich_help_panel=TABLE,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Only these seeds, such as 12,13.", rich_help_panel=TABLE)
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="first_stage, teacher, a row's name or none; may be repeated.",
            rich_help_panel=TESTS,
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs", help="Also test all pairs of a backbone's systems.", rich_help_panel=TESTS
        ),
    ] = False,
    test: Annotated[
        str, typer.Option(help="t (paired) or randomization.", rich_help_panel=TESTS)
    ] = "t",
    correction: Annotated[
        str, typer.Option(help="holm, bonferroni, bh or none.", rich_help_panel=TESTS)
    ] = "holm",
    alpha: Annotated[
        float, typer.Option(help="Level of significance.", min=0, max=1, rich_help_panel=TESTS)
    ] = 0.05,
    effects: Annotated[
        bool,
        typer.Option(
            "--effects", help="Add what each choice is worth, others equal.", rich_help_panel=MORE
        ),
    ] = False,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Add the hours that it took.", rich_help_panel=MORE),
    ] = False,
    compare_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Add the published figures of a reference file; may be repeated.",
            rich_help_panel=MORE,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Draw figures as PDF into this folder; LaTeX includes them.", rich_help_panel=MORE
        ),
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option("--standalone", help="It compiles by itself.", rich_help_panel=LATEX),
    ] = False,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide", help="Over both columns of a two-column page.", rich_help_panel=LATEX
        ),
    ] = False,
    landscape: Annotated[
        bool, typer.Option("--landscape", help="Turned by 90 degrees.", rich_help_panel=LATEX)
    ] = False,
    max_columns: Annotated[
        int,
        typer.Option(
            help="Columns of one tabular; 0 for 6, or 10 in landscape.",
            min=0,
            rich_help_panel=LATEX,
        ),
    ] = 0,
) -> None:
    """The table of a sweep's accepted results, with significance against the baselines.

    \b
    Examples:
      xsweep report
      xsweep report quickstart --measure nDCG@10 --measure RR@10
      xsweep report quickstart --format latex --standalone --figures figures -o table.tex
      xsweep report quickstart --format html --effects --cost -o report.html
      xsweep report quickstart --baseline "MiniLM-L6 infonce" --where group=large objective=bce
    """
    from xsweep.orchestrator.report import check_format, load_report, write
    from xsweep.orchestrator.report.report import Layout

    check_format(format)
    names, further = _sweep_and_conditions(sweep or [])
    engine = open_database(ctx)
    found = load_report(
        engine,
        only_sweep(engine, names),
        measures=measure or ["nDCG@10"],
        by=by,
        baseline=[] if baseline == ["none"] else baseline or ["first_stage"],
        pairs=pairs,
        alpha=alpha,
        correction=correction,
        test=test,
        best=best,
        digits=digits,
        percent=percent,
        where=_conditions([*(where or []), *further], seeds),
        effects=effects,
        cost=cost,
        compare_to=compare_to or [],
    )
    drawn: tuple[str, ...] = ()
    if figures is not None:
        from xsweep.orchestrator.report.figures import save_figures

        beside = output.parent if output else Path()
        drawn = tuple(
            os.path.relpath(path, beside).replace(os.sep, "/")
            for path in save_figures(found, figures)
        )
        typer.echo(f"Wrote {len(drawn)} figures to {figures}", err=output is None)
    layout = Layout(
        width=_width() if output is None else Layout.width,
        standalone=standalone,
        wide=wide,
        landscape=landscape,
        max_columns=max_columns,
        figures=drawn,
    )
    text = write(found, format, layout)
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {output}")


def _sweep_and_conditions(words: list[str]) -> tuple[str | None, list[str]]:
    """`--where a=1 b=2` gives its second pair to the arguments: told apart by the `=`."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"one sweep at a time: {' and '.join(names)} were given")
    return (names[0] if names else None), [word for word in words if "=" in word]


def _conditions(where: list[str], seeds: str | None) -> dict[str, list[str]]:
    """Label -> accepted values: values of the same label add up."""
    chosen: dict[str, list[str]] = {}
    for pair in where:
        key, equals, values = pair.partition("=")
        if not equals:
            raise ConfigError(f"--where {pair!r}: write label=value, such as group=small")
        chosen.setdefault(key, []).extend(each.strip() for each in values.split(","))
    if seeds is not None:
        chosen.setdefault("seed", []).extend(each.strip() for each in seeds.split(","))
    return chosen


def _width() -> int:
    """Of the terminal; text that goes into a pipe or file is always the same."""
    from xsweep.orchestrator.report.report import Layout

    if not sys.stdout.isatty():
        return Layout.width
    return max(shutil.get_terminal_size((Layout.width, 24)).columns, NARROWEST)


@app.command()
def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A row of the report, or first_stage.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to compare it with.")],
    sweep: Annotated[str | None, typer.Option(help="A sweep; without it, the newest.")] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", help="May be repeated; nDCG@10 unless given."),
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option(help="Only this collection; may be repeated.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, such as 12,13.")] = None,
    top: Annotated[int, typer.Option(help="Largest changes to show each way.", min=0)] = 5,
    digits: Annotated[int, typer.Option(min=1, max=6)] = 3,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown, csv (all queries) or json.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not to the terminal.")
    ] = None,
) -> None:
    """Two systems query by query: wins, losses, and the largest changes with their texts.

    \b
    Examples:
      xsweep compare "MiniLM-L6 infonce" first_stage
      xsweep compare "MiniLM-L6 infonce" "MiniLM-L6 margin_mse" --top 20
      xsweep compare "BERT-Base bce" "BERT-Base hinge" --collection scifact -f csv -o queries.csv
    """
    from xsweep.orchestrator.report import load_measures, select
    from xsweep.orchestrator.report.compare import FORMATS, compare_systems, render_differences

    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    engine = open_database(ctx)
    name = only_sweep(engine, sweep)
    measures, cells = load_measures(engine, name, measure or ["nDCG@10"])
    if seeds is not None:
        cells = select(cells, {"seed": [each.strip() for each in seeds.split(",")]})
    store = settings_of(ctx).store
    one, other, found = compare_systems(
        cells,
        a,
        b,
        measures=measures,
        collections=collection or [],
        texts=lambda cell: _query_texts(store, cell),
    )
    text = render_differences(name, (one, other), found, format=format, top=top, digits=digits)
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {output}")


def _query_texts(store: str, cell: "Cell") -> dict[str, str]:
    """From the candidates' folder; none where the store is not at hand, and a word about it."""
    from xsweep.evaluator.data.readers import read_texts
    from xsweep.orchestrator.storage.store import store_at

    candidates = cell.parents_summary.get("candidates")
    if candidates is None or not candidates.folder:
        return {}
    try:
        queries = store_at(store).fetch_file(f"{candidates.folder}/queries.jsonl.gz")
        return dict(read_texts(queries))
    except (XsweepError, OSError) as error:
        typer.echo(f"no query texts of {cell.labels['collection']}: {error}", err=True)
        return {}

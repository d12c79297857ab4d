"""`report`: the tables of a sweep."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, only_sweep, open_database
from xsweep import ConfigError


@app.command()
def report(
    ctx: typer.Context,
    sweep: Annotated[str | None, typer.Argument(help="A sweep; without it, the newest.")] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown, latex, csv, json or html.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not to the terminal.")
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", "-m", help="May be repeated [nDCG@10].")
    ] = None,
    by: Annotated[str, typer.Option(help="Columns: collection or suite.")] = "collection",
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="first_stage, teacher or a row's name; may be repeated [first_stage]."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with this label, such as group=small; may be repeated."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of significance.", min=0, max=1)] = 0.05,
    correction: Annotated[str, typer.Option(help="holm, bonferroni, bh or none.")] = "holm",
    test: Annotated[str, typer.Option(help="t (paired) or randomization.")] = "t",
    digits: Annotated[int, typer.Option(min=1, max=6)] = 3,
    percent: Annotated[bool, typer.Option("--percent", help="0.534 as 53.4.")] = False,
    effects: Annotated[
        bool, typer.Option("--effects", help="Add what each choice is worth, averaged over others.")
    ] = False,
    compare_to: Annotated[
        str | None, typer.Option(help="Add the published figures of a reference file.")
    ] = None,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="LaTeX that compiles by itself.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="LaTeX over both columns of a page.")
    ] = False,
    max_columns: Annotated[int, typer.Option(help="Columns of one LaTeX tabular.", min=1)] = 6,
) -> None:
    """The table of a sweep's accepted results, with significance against the baselines.

    \b
    Examples:
      xsweep report
      xsweep report quickstart --measure nDCG@10 --measure RR@10
      xsweep report quickstart --format latex -o table.tex
      xsweep report quickstart --format html --effects -o report.html
      xsweep report quickstart --baseline "MiniLM-L6 infonce" --where group=large
    """
    from orchestrator.report import render

    chosen: dict[str, list[str]] = {}
    for pair in where or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--where {pair!r}: write label=value, such as group=small")
        chosen.setdefault(key, []).append(value)
    engine = open_database(ctx)
    text = render(
        engine,
        only_sweep(engine, sweep),
        format=format,
        measures=measure or ["nDCG@10"],
        by=by,
        baseline=baseline or ["first_stage"],
        alpha=alpha,
        correction=correction,
        test=test,
        digits=digits,
        percent=percent,
        where=chosen,
        effects=effects,
        compare_to=compare_to,
        standalone=standalone,
        wide=wide,
        max_columns=max_columns,
    )
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {output}")

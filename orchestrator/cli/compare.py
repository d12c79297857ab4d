"""`compare`: two systems of a sweep, query by query."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import app, only_sweep, open_database, settings_of
from xsweep import ConfigError, XsweepError

if TYPE_CHECKING:
    from db.results import Cell


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
    from orchestrator.report import load_measures
    from orchestrator.report.build import select
    from orchestrator.report.differences import compare_systems
    from orchestrator.report.differences_text import FORMATS, render_differences

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
    from evaluator.collections import read_texts
    from orchestrator.remote import fetch_file
    from orchestrator.store import resolve, store_root

    candidates = cell.parents_summary.get("candidates")
    if candidates is None or not candidates.folder:
        return {}
    try:
        root = store_root(store)
        resolve(root, candidates.folder)
        return dict(read_texts(fetch_file(root, f"{candidates.folder}/queries.jsonl.gz")))
    except (XsweepError, OSError) as error:
        typer.echo(f"no query texts of {cell.labels['collection']}: {error}", err=True)
        return {}

"""`export`, `import` and `gc`: results that move, and results that nobody needs any more."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, only_sweep, open_database, settings_of


@app.command("export")
def export(
    ctx: typer.Context,
    sweep: Annotated[str | None, typer.Argument(help="A sweep; without it, the newest.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder, .tar.gz or .zip file.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Only this training, with its evaluations.", metavar="JOB")
    ] = None,
    models: Annotated[bool, typer.Option(help="With the trained models.")] = True,
    runs: Annotated[bool, typer.Option(help="With the evaluations' TREC runs.")] = True,
) -> None:
    """Write a sweep's results to publish: tables, models with cards, scores, provenance.

    \b
    Examples:
      xsweep export quickstart -o published.tar.gz
      xsweep export quickstart -o published
      xsweep export full_grid -o tables --no-models --no-runs
      xsweep export quickstart --run "train MiniLM-L3 bce bm25_pairs s1" -o one_model
    """
    from db.lookup import find_job, identity_of
    from orchestrator.archive import export_sweep
    from orchestrator.packed import to_pack
    from orchestrator.store import open_store

    engine = open_database(ctx)
    name = only_sweep(engine, sweep)
    folder = output or Path(f"{name}-export")
    only_job = identity_of(engine, find_job(engine, run)) if run else None
    store = open_store(settings_of(ctx).store)
    with to_pack(folder) as out:
        kinds = export_sweep(engine, store, name, out, only_job=only_job, models=models, runs=runs)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    typer.echo(f"Wrote {folder}: {listed}. Next, elsewhere: xsweep import {folder}")


@app.command("import")
def import_(
    ctx: typer.Context,
    archive: Annotated[Path, typer.Argument(help="What xsweep export wrote: folder or file.")],
    name: Annotated[
        str | None, typer.Option(help="What the sweep is called here; as it was, unless given.")
    ] = None,
) -> None:
    """Take over exported results; what is done here already stays as it is.

    \b
    Example:
      xsweep import published
      xsweep report quickstart
    """
    from orchestrator.archive import import_sweep
    from orchestrator.packed import unpacked
    from orchestrator.store import open_store

    engine = open_database(ctx, create=True)
    store = open_store(settings_of(ctx).store)
    with unpacked(archive) as folder:
        found = import_sweep(engine, store, folder, name=name)
    typer.echo(f"{found.accepted} results taken over, {found.known} were here before")
    if found.refused:
        typer.echo(
            f"{found.refused} were left out: those jobs run here, or wait for work of this database"
        )


@app.command()
def gc(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only shown.")] = False,
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="Leave what was written within these hours.")
    ] = 1.0,
) -> None:
    """Show, or remove, what no result needs: superseded attempts and old checkpoints.

    \b
    Examples:
      xsweep gc
      xsweep gc --yes
    """
    from db.folders import load_folders
    from orchestrator.garbage import find_garbage, remove
    from orchestrator.store import open_store

    store = open_store(settings_of(ctx).store)
    attempts = load_folders(open_database(ctx))
    garbage = find_garbage(store, attempts, older_than_s=3600 * older_than_hours)
    for each in garbage:
        typer.echo(f"{each.size_bytes / 1e6:10.1f} MB  {each.folder}: {each.why}")
    total = f"{sum(each.size_bytes for each in garbage) / 1e6:.1f} MB in {len(garbage)} folders"
    if not garbage:
        typer.echo("Nothing to remove.")
    elif yes:
        remove(store, garbage)
        typer.echo(f"Removed {total}.")
    else:
        typer.echo(f"Would remove {total}. Nothing was removed; next: xsweep gc --yes")

"""`export`, `import`, `gc`, `db`, `store`, `serve`, `metrics`, `track`: where results go."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from xsweep import __version__
from xsweep.errors import ConfigError, DataError, SetupError, XsweepError
from xsweep.orchestrator.cli.app import app, open_database, settings_of, sweep_argument
from xsweep.orchestrator.settings import TRACKERS, parse_trackers


@app.command("export")
def export(
    ctx: typer.Context,
    sweep: Annotated[str | None, sweep_argument(help="A sweep (default: the newest).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder, .tar.gz or .zip file.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Only this training and its evaluations.", metavar="JOB")
    ] = None,
    models: Annotated[bool, typer.Option(help="Include the trained models.")] = True,
    runs: Annotated[bool, typer.Option(help="Include the TREC runs.")] = True,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Upload the models to the Hugging Face Hub.", metavar="ORG/NAME"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="For the cards: the Hub's id, such as apache-2.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="For the cards, such as en; may be repeated.")
    ] = None,
) -> None:
    """Export a sweep for publication: tables, models with cards, scores, provenance.

    With --push-to-hub the export itself is kept only if --output is given.

    \b
    Examples:
      xsweep export quickstart -o published.tar.gz
      xsweep export quickstart -o published
      xsweep export quickstart -o tables --no-models --no-runs
      xsweep export quickstart --run "train MiniLM-L3 bce bm25_pairs s1" -o one_model
      xsweep export quickstart --push-to-hub my-org/quickstart --license apache-2.0 --language en
    """
    from xsweep.db.explain import explain, only_sweep
    from xsweep.orchestrator.storage.archive import export_sweep, packing, push_models
    from xsweep.orchestrator.storage.store import open_store

    engine = open_database(ctx, read_only=True)
    name = only_sweep(engine, sweep)
    only_job = explain(engine, run, compare=False).identity if run else None
    store = open_store(settings_of(ctx).store)
    about: dict[str, Any] = {"license": license, "languages": tuple(language or ())}
    if push_to_hub:
        about["address"] = push_to_hub
        if license is None:
            typer.echo("warning: the cards name no licence: give --license", err=True)
    with TemporaryDirectory(prefix="xsweep-export-") as work:
        kept = output or (None if push_to_hub else Path(f"{name}-export"))
        with packing(kept or Path(work, name)) as out:
            kinds = export_sweep(
                engine, store, name, out, only_job=only_job, models=models, runs=runs, about=about
            )
            if push_to_hub:
                typer.echo(f"Uploaded: {push_models(out, push_to_hub, private=private)}")
    if kept:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        typer.echo(f"Wrote {kept}: {listed}. Next, elsewhere: xsweep import {kept}")


@app.command("import")
def import_(
    ctx: typer.Context,
    archive: Annotated[Path, typer.Argument(help="Folder or file written by xsweep export.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep here (default: its name there).")
    ] = None,
) -> None:
    """Import exported results; results that are present already stay as they are.

    \b
    Example:
      xsweep import published
      xsweep report quickstart
    """
    from xsweep.orchestrator.storage.archive import import_sweep, unpacking
    from xsweep.orchestrator.storage.store import open_store

    with unpacking(archive) as folder:
        engine = open_database(ctx, create=True)
        store = open_store(settings_of(ctx).store)
        found = import_sweep(engine, store, folder, name=name)
    typer.echo(f"Imported {found.accepted} results ({found.known} already present)")
    if found.refused:
        typer.echo(
            f"Skipped {found.refused} results: their jobs are running or depend on jobs here"
        )


@app.command()
def gc(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the listed files.")] = False,
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="Keep files written within these hours.")
    ] = 1.0,
) -> None:
    """List, or remove, files that no result needs: superseded attempts, old checkpoints.

    \b
    Examples:
      xsweep gc
      xsweep gc --yes
    """
    from xsweep.db.results import load_folders
    from xsweep.orchestrator.storage.store import find_garbage, open_store

    store = open_store(settings_of(ctx).store, read_only=not yes)
    attempts = load_folders(open_database(ctx))
    garbage = find_garbage(store, attempts, older_than_s=3600 * older_than_hours)
    for each in garbage:
        typer.echo(f"{each.size_bytes / 1e6:10.1f} MB  {each.folder}: {each.why}")
    total = f"{sum(each.size_bytes for each in garbage) / 1e6:.1f} MB in {len(garbage)} folders"
    if not garbage:
        typer.echo("Nothing to remove.")
    elif yes:
        for each in garbage:
            store.remove(each.folder)
        typer.echo(f"Removed {total}.")
    else:
        typer.echo(f"Would remove {total}. To remove them: xsweep gc --yes")


database = typer.Typer(no_args_is_help=True, help="Maintain the job table: upgrade, check, backup.")
app.add_typer(database, name="db")


@database.command()
def upgrade(ctx: typer.Context) -> None:
    """Create the tables, or migrate older ones to this version.

    \b
    Example:
      xsweep db upgrade
    """
    from xsweep.db.engine import redacted, schema_version

    engine = open_database(ctx, create=True)
    typer.echo(f"{redacted(settings_of(ctx).database)}: schema {schema_version(engine)}")


@database.command()
def check(ctx: typer.Context) -> None:
    """Verify the invariants of the job table; exit code 1 if one is violated.

    \b
    Example:
      xsweep db check
    """
    from xsweep.db.check import check as find_violations

    violations = find_violations(open_database(ctx, read_only=True))
    for each in violations:
        job = f" (job {each.job_id})" if each.job_id else ""
        typer.echo(f"{each.invariant}{job}: {each.message}")
    typer.echo(f"{len(violations)} violations" if violations else "All invariants hold.")
    raise typer.Exit(1 if violations else 0)


@database.command()
def backup(ctx: typer.Context, path: Annotated[Path, typer.Argument(help="The new file.")]) -> None:
    """Copy the database while it is in use (SQLite; for PostgreSQL, print the pg_dump command).

    \b
    Example:
      xsweep db backup backups/monday.db
    """
    from xsweep.db.engine import backup as copy_database

    copy_database(open_database(ctx, read_only=True), path)
    typer.echo(f"Wrote {path}")


stored = typer.Typer(no_args_is_help=True, help="Look after the store: check.")
app.add_typer(stored, name="store")


@stored.command("check")
def check_store(ctx: typer.Context) -> None:
    """Compare every accepted result with its checksums; exit code 1 where one differs.

    Of an object store, sizes are compared, and checksums of the files that a report needs.

    \b
    Example:
      xsweep store check
    """
    from xsweep.db.results import load_folders
    from xsweep.evaluator.data.files import MANIFEST, checksum
    from xsweep.orchestrator.storage.store import open_store

    store = open_store(settings_of(ctx).store, read_only=True)
    accepted = [each for each in load_folders(open_database(ctx, read_only=True)) if each.accepted]
    damaged = absent = 0
    with typer.progressbar(accepted, label="Checking results", file=sys.stderr) as attempts:
        for attempt in attempts:
            if "/imported-" in attempt.folder and not store.is_published(attempt.folder):
                absent += 1  # of an archive without models or runs
                continue
            try:
                manifest = store.fetch_results(attempt.folder) / MANIFEST
                if checksum(manifest) != attempt.manifest_sha256:
                    raise DataError(f"{manifest}: not the manifest that was accepted")
            except (DataError, SetupError) as problem:
                damaged += 1
                typer.echo(f"{attempt.name}: {problem}")
    if damaged:
        raise XsweepError(
            f"{damaged} of {len(accepted)} results are missing or damaged: restore them from a "
            "backup, or compute each again with what depends on it: xsweep redo JOB"
        )
    typer.echo(f"{len(accepted) - absent} results are as they were accepted.")
    if absent:
        typer.echo(f"{absent} were imported without their files.")


@app.command("version")
def show_version() -> None:
    """Print xsweep's version.

    \b
    Example:
      xsweep version
    """
    typer.echo(__version__)


PORT = 8420


@app.command()
def serve(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = PORT,
) -> None:
    """Serve sweeps, curves, queries, jobs and logs as web pages: loopback only, read-only.

    From another machine: ssh -L 8420:127.0.0.1:8420 HOST, then open http://127.0.0.1:8420

    \b
    Examples:
      xsweep serve
      xsweep serve --port 9000
    """
    from xsweep.db.engine import connect, redacted
    from xsweep.orchestrator.serve import LOOPBACK, open_server
    from xsweep.orchestrator.serve.pages import Site
    from xsweep.orchestrator.storage.store import store_at

    settings = settings_of(ctx)
    engine = connect(settings.database, read_only=True)
    site = Site(engine, store_at(settings.store), redacted(settings.database))
    try:
        server = open_server(site.respond, port)
    except OSError as error:
        raise SetupError(
            f"port {port} of {LOOPBACK} cannot be used ({error.strerror}): choose another --port"
        ) from error
    typer.echo(f"http://{LOOPBACK}:{server.server_address[1]}  (Ctrl-C to stop)")
    with server:
        server.serve_forever()


@app.command()
def metrics(ctx: typer.Context) -> None:
    """Print the job table as Prometheus text, for a textfile collector.

    A controller serves the same on loopback: xsweep run --metrics-port 9108

    \b
    Example:
      xsweep metrics > /var/lib/node_exporter/xsweep.prom.tmp
    """
    from xsweep.db.engine import connect
    from xsweep.orchestrator.monitoring.metrics import as_text

    engine = connect(settings_of(ctx).database, read_only=True)
    typer.echo(as_text(engine), nl=False)


@app.command()
def track(
    ctx: typer.Context,
    sweep: Annotated[str | None, sweep_argument(help="A sweep (default: the newest).")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="wandb, mlflow, trackio or tensorboard; repeatable (default: XSWEEP_TRACKERS).",
            autocompletion=lambda: TRACKERS,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Send what was sent before, too, as to a new server.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Send whatever open sweeps add, until Ctrl-C.")
    ] = False,
) -> None:
    """Send a sweep's curves, test scores and table to experiment trackers.

    With XSWEEP_TRACKERS set, a controller does so while jobs run; this sends what it missed.

    \b
    Examples:
      xsweep track quickstart --to mlflow
      xsweep track quickstart --to wandb --to tensorboard
      xsweep track --follow --to trackio
    """
    from xsweep.db.explain import only_sweep
    from xsweep.orchestrator.monitoring import trackers
    from xsweep.orchestrator.runtime.process import leash
    from xsweep.orchestrator.storage.store import store_at

    settings = settings_of(ctx)
    names = parse_trackers(to or settings.trackers)
    if not names or (follow and len(names) > 1):
        raise ConfigError("name a tracker with --to; --follow takes one")
    engine, store = open_database(ctx, read_only=True), store_at(settings.store)
    failed = 0
    for name in names:
        relay = trackers.Relay(name, settings.home, engine, store)
        try:
            if follow:
                trackers.follow(relay, leash())
                continue
            chosen = only_sweep(engine, sweep)
            if again:
                relay.forget(chosen)
            failed += relay.send(chosen)
        finally:
            relay.close()
    if failed:
        raise XsweepError(f"{failed} runs could not be sent: see above, then run this again")

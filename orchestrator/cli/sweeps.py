"""`submit` and `run`: from a grid file to jobs, and running them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import app, open_database, settings_of

if TYPE_CHECKING:
    from orchestrator.plan import Plan

GridFile = Annotated[Path, typer.Argument(help="A grid file.", metavar="GRID")]


@app.command()
def submit(
    ctx: typer.Context,
    grid: GridFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, store nothing.")
    ] = False,
    start: Annotated[bool, typer.Option(help="Start a controller if none runs.")] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the sweep until it ends.")] = False,
) -> None:
    """Store a grid's jobs and start them; what is done already is never done again.

    \b
    Examples:
      xsweep submit sweeps/quickstart.yaml --dry-run
      xsweep submit sweeps/quickstart.yaml --watch
      xsweep submit sweeps/trec_dl.yaml --data-home ~/data --no-start
    """
    from orchestrator import process
    from orchestrator.cli.plan import preview, show_forecast, show_plan
    from orchestrator.plan import plan_grid

    settings = settings_of(ctx)
    planned = plan_grid(grid, settings)
    if dry_run:
        show_plan(planned, preview(settings, planned))
        show_forecast(settings, planned)
        typer.echo("Dry run: nothing was stored.")
        return

    _refuse_absent(planned)

    from db import jobs

    engine = open_database(ctx, create=True)
    submission = jobs.add_sweep(engine, name=planned.name, grid=planned.grid, jobs=planned.jobs)
    show_plan(planned, submission)
    if submission.done == submission.total:
        typer.echo("Everything is done already; nothing is computed again. Next: xsweep report")
        return
    if start and process.start_detached(settings) is not None:
        typer.echo(f"Started a controller; its log is {settings.home / 'logs' / 'controller.log'}")
    elif not start and not process.is_running(settings):
        typer.echo("Next: xsweep run")
    if watch:
        from orchestrator.cli.status import watch_sweep

        raise typer.Exit(watch_sweep(settings, engine, planned.name))


@app.command()
def run(
    ctx: typer.Context,
    until_idle: Annotated[
        bool, typer.Option("--until-idle/--forever", help="Leave when no job is left, or never.")
    ] = True,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="XSWEEP_METRICS_PORT",
            show_envvar=False,
            help="Serve Prometheus metrics on this port of 127.0.0.1 [XSWEEP_METRICS_PORT].",
        ),
    ] = None,
) -> None:
    """Run the stored jobs here, in the foreground; resumes whatever is missing.

    Ctrl-C lets running jobs save and leaves; a second Ctrl-C leaves at once.

    \b
    Examples:
      xsweep run
      RAY_ADDRESS=auto xsweep run --forever --metrics-port 9108
    """
    import logging

    from orchestrator import process

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    raise typer.Exit(
        process.run(settings_of(ctx), until_idle=until_idle, metrics_port=metrics_port)
    )


def _refuse_absent(planned: "Plan") -> None:
    """Refuse to store jobs whose identity needs the checksum of a file that is not there."""
    from xsweep import DataError

    if planned.absent:
        path, what = next(iter(planned.absent.items()))
        raise DataError(
            f"{len(planned.absent)} files are missing, whose content is part of the jobs, first "
            f"{path}: {what}. Put them there and submit again; `xsweep plan` lists them all"
        )

"""`status`: the progress of every sweep, once, live, or as JSON (see docs/operations.md)."""

import json
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xsweep.errors import ConfigError, SetupError
from xsweep.orchestrator.cli.app import app, open_database, settings_of, sweep_argument
from xsweep.orchestrator.settings import KINDS, STATES

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Engine

    from xsweep.db.status import Summary
    from xsweep.orchestrator.settings import Settings


START_S = 30.0
"""Time for a controller to start before `submit --watch` gives up."""


@app.command()
def status(
    ctx: typer.Context,
    sweep: Annotated[str | None, sweep_argument(help="A sweep (default: all).")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow until all jobs ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object of schema xsweep.status/1.")
    ] = False,
    jobs: Annotated[bool, typer.Option("--jobs", "-j", help="List the jobs.")] = False,
    state: Annotated[
        str | None,
        typer.Option(
            help=f"Only jobs in this state: {', '.join(STATES)}.", autocompletion=lambda: STATES
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help=f"Only jobs of this kind: {', '.join(KINDS)}.", autocompletion=lambda: KINDS
        ),
    ] = None,
    match: Annotated[
        str | None, typer.Option(help="Only jobs with this text in their name.", metavar="TEXT")
    ] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs to list.", min=1)] = 1000,
) -> None:
    """Show totals per sweep, running jobs, recent failures and the time left.

    \b
    Examples:
      xsweep status
      xsweep status quickstart --watch
      xsweep status --jobs --state failed
      xsweep status --kind train --match infonce
      xsweep status --json
    """
    for name, given, known in (("state", state, STATES), ("kind", kind, KINDS)):
        if given is not None and given not in known:
            raise ConfigError(f"unknown {name} {given!r}: use one of {', '.join(known)}")
    from xsweep.db.status import list_jobs, summary

    engine = open_database(ctx, read_only=True)
    if jobs or state or kind or match:
        rows = list_jobs(engine, sweep, state=state, kind=kind, match=match, limit=limit)
        if as_json:
            listed = {"schema": "xsweep.jobs/1", "jobs": [asdict(row) for row in rows]}
            typer.echo(json.dumps(listed, indent=1))
            return
        for row in rows:
            why = f": {row.failure}: {row.reason}" if row.failure else ""
            typer.echo(f"{row.job_id:>6} {row.identity[:12]} {row.state:9} {row.name}{why}")
        return
    if watch:
        raise typer.Exit(watch_sweep(settings_of(ctx), engine, sweep, needs_controller=False))
    found = summary(engine, sweep)
    if as_json:
        typer.echo(json.dumps(_as_json(settings_of(ctx), found), indent=1))
        return
    from xsweep.orchestrator.monitoring.live import page

    console = _console()
    for part in page(found, width=console.width):
        console.print(part)
    token = settings_of(ctx).home / "ray-token"
    if found.controllers and token.exists():
        console.print(f"Ray's dashboard asks for a token: cat {token}", soft_wrap=True)


def watch_sweep(
    settings: "Settings", engine: "Engine", sweep: str | None, *, needs_controller: bool = True
) -> int:
    """Follow sweeps until all jobs ended; return 1 if some of them failed, else 0.

    Raises SetupError if a controller is needed and none runs.
    """
    from rich.console import Group

    from xsweep.db.schema import OPEN
    from xsweep.db.status import summary
    from xsweep.orchestrator.forecast.eta import count
    from xsweep.orchestrator.monitoring.live import View, headline, is_screen, page, rest_s
    from xsweep.orchestrator.runtime import process

    console = _console()
    view = View(engine, console, sweep) if is_screen(console) else None
    seen_s = time.monotonic()
    printed: list[dict[str, dict[str, int]]] = []
    with view.live if view else nullcontext():
        while True:
            began_s = time.monotonic()
            found = view.refresh() if view else summary(engine, sweep)
            took_s = time.monotonic() - began_s
            if not view and printed != (counts := [each.counts for each in found.sweeps]):
                # A log file gets a line per change instead of a live view.
                console.print(*(headline(each, found) for each in found.sweeps), sep="\n")
                printed = counts
            if not any(count(each, OPEN) for each in found.sweeps):
                break
            if found.controllers or process.is_running(settings):
                seen_s = time.monotonic()
            elif needs_controller and time.monotonic() - seen_s > START_S:
                log = settings.home / "logs" / "controller.log"
                raise SetupError(f"no controller is running; see {log}. Next: xsweep run")
            time.sleep(view.pause_s if view else rest_s(took_s))
    if not view:
        console.print(Group(*page(found, width=console.width)))
    return 1 if any(count(each, ("failed",)) for each in found.sweeps) else 0


def _as_json(settings: "Settings", found: "Summary") -> dict[str, Any]:
    from xsweep.db.engine import redacted
    from xsweep.db.schema import OPEN
    from xsweep.orchestrator.forecast.eta import count, eta_s

    content = asdict(found)
    for sweep, each in zip(found.sweeps, content["sweeps"], strict=True):
        each["eta_s"] = eta_s(sweep, found) if count(sweep, OPEN) else 0.0
    return {"schema": "xsweep.status/1", "database": redacted(settings.database), **content}


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console

"""`status`: where every sweep stands, once, live, or as JSON.

`--json` prints one object of schema `xsweep.status/1`: `at` (the database's clock, seconds since
1970), `database` (without its password), `sweeps` (`id name state created_at counts total cost_s
eta_s`; counts are {kind: {state: jobs}}, cost_s the seconds planned for these), `running` (`job_id
identity kind name token owner node log progress since_s lease_left_s`), `failures` (`job_id
identity kind name state token priority failure reason ended_at`), `mean_s` and `pace` (measured
per planned second) by kind, `troubles` (failed attempts, also of jobs that are tried again: `event
at job_id kind name token failure reason next sweeps`), `controllers` (`owner host pid
dashboard_url started_at silent_s`) and `oldest_ready_s`. With `--jobs`, schema `xsweep.jobs/1`:
`jobs` (the same keys as `failures`). Unknown values are null; later versions only add keys.
"""

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from db.states import OPEN, State
from orchestrator.cli.app import app, open_database, settings_of
from orchestrator.cli.status_page import headline, page
from orchestrator.forecast import count, eta_s
from xsweep import ConfigError, SetupError

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Engine

    from db.status import Summary
    from orchestrator.settings import Settings

REFRESH_S = 2.0
START_S = 30.0
"""How long a controller may take until `submit --watch` believes that none came up."""


@app.command()
def status(
    ctx: typer.Context,
    sweep: Annotated[str | None, typer.Argument(help="A sweep; without it, all.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until all is done.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One object of schema xsweep.status/1.")
    ] = False,
    jobs: Annotated[bool, typer.Option("--jobs", "-j", help="List the jobs.")] = False,
    state: Annotated[
        str | None, typer.Option(help=f"Only jobs in this state: {', '.join(State)}.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Jobs to list at most.", min=1)] = 1000,
) -> None:
    """Totals per sweep, what runs, what failed lately and when it will be done.

    \b
    Examples:
      xsweep status
      xsweep status quickstart --watch
      xsweep status --jobs --state failed
      xsweep status --json
    """
    if state is not None and state not in list(State):
        raise ConfigError(f"unknown state {state!r}: use one of {', '.join(State)}")
    from db import status as table

    engine = open_database(ctx)
    if jobs or state:
        rows = table.jobs(engine, sweep, state=state, limit=limit)
        _print_jobs(rows, as_json)
        return
    if watch:
        raise typer.Exit(_watch(settings_of(ctx), engine, sweep, needs_controller=False))
    found = table.summary(engine, sweep)
    if as_json:
        typer.echo(json.dumps(_as_json(settings_of(ctx), found), indent=1))
        return
    console = _console()
    for part in page(found):
        console.print(part)


def watch_sweep(settings: "Settings", engine: "Engine", sweep: str) -> int:
    """Follow a submitted sweep to its end; 1 if some of its jobs failed, else 0.

    Raises SetupError when no controller is there to run it.
    """
    return _watch(settings, engine, sweep, needs_controller=True)


def _watch(
    settings: "Settings", engine: "Engine", sweep: str | None, *, needs_controller: bool
) -> int:
    from rich.console import Group
    from rich.live import Live

    from db.status import summary
    from orchestrator import process

    console = _console()
    seen_s = time.monotonic()
    told: list[dict[str, dict[str, int]]] = []
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while True:
            began_s = time.monotonic()
            found = summary(engine, sweep)
            took_s = time.monotonic() - began_s
            if console.is_terminal:
                live.update(Group(*page(found, console.size.height)), refresh=True)
            elif told != (counts := [each.counts for each in found.sweeps]):
                # In a log file, a line per change is all that can be followed.
                console.print(*(headline(each, found) for each in found.sweeps), sep="\n")
                told = counts
            if not any(count(each, OPEN) for each in found.sweeps):
                break
            if found.controllers or process.is_running(settings):
                seen_s = time.monotonic()
            elif needs_controller and time.monotonic() - seen_s > START_S:
                log = settings.home / "logs" / "controller.log"
                raise SetupError(f"no controller is running; its log is {log}. Next: xsweep run")
            # A hundredth of a core at most, however large the table.
            time.sleep(min(60.0, max(REFRESH_S, 100 * took_s)))
    if not console.is_terminal:
        console.print(Group(*page(found)))
    return 1 if any(count(each, ("failed",)) for each in found.sweeps) else 0


def _print_jobs(rows: "list[Any]", as_json: bool) -> None:
    if as_json:
        jobs = [asdict(row) for row in rows]
        typer.echo(json.dumps({"schema": "xsweep.jobs/1", "jobs": jobs}, indent=1))
        return
    for row in rows:
        why = f": {row.failure}: {row.reason}" if row.failure else ""
        typer.echo(f"{row.job_id:>6} {row.identity[:12]} {row.state:9} {row.name}{why}")


def _as_json(settings: "Settings", found: "Summary") -> dict[str, Any]:
    from db.engine import redacted

    content = asdict(found)
    for sweep, each in zip(found.sweeps, content["sweeps"], strict=True):
        each["eta_s"] = eta_s(sweep, found) if count(sweep, OPEN) else 0.0
    return {
        "schema": "xsweep.status/1",
        "database": redacted(settings.database),
        **content,
    }


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console

"""`status`: the progress of every sweep, once, live, or as JSON (see docs/operations.md)."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xsweep.db.schema import OPEN, State
from xsweep.errors import ConfigError, SetupError
from xsweep.orchestrator.cli.app import app, open_database, settings_of
from xsweep.orchestrator.forecast.eta import count, eta_s, progress_text
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.settings import KINDS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from sqlalchemy import Engine

    from xsweep.db.status import RunningJob, Summary, SweepStatus
    from xsweep.orchestrator.settings import Settings


REHEARSAL = "rehearsal"
"""Suffix of every rehearsal's name."""
BAR_WIDTH = 40
WAITS_S = 60.0
"""Age of the oldest ready job, with nothing running, from which it is reported."""
RETRIES_SHOWN = 3
REFRESH_S = 2.0
START_S = 30.0
"""Time for a controller to start before `submit --watch` gives up."""


def page(found: "Summary", lines: int | None = None) -> "Iterator[RenderableType]":
    """Render the page; with `lines`, running jobs that do not fit are counted instead of listed."""
    from rich.progress_bar import ProgressBar

    if not found.sweeps:
        yield "No sweep has been submitted yet. Next: xsweep submit quickstart"
    used = 0
    for sweep in found.sweeps:
        yield headline(sweep, found)
        done = count(sweep, ("done",))
        yield ProgressBar(total=max(1, sweep.total), completed=done, width=BAR_WIDTH)
        yield _sweep_table(sweep)
        used += 8 + len(sweep.counts)
    again = [each for each in found.troubles if each.next == "ready"][:RETRIES_SHOWN]
    used += len(found.failures) + len(again) + len(found.controllers) + 8
    if found.running:
        yield _running_table(found, None if lines is None else max(3, lines - used))
    for failure in found.failures:
        why = f"{failure.failure}: {_line(failure.reason)}"
        yield f"[red]failed[/] {plain(failure.name)}: {why}"
    for trouble in again:
        ago = duration(max(0.0, found.at - trouble.at))
        why = f"{trouble.failure}: {_line(trouble.reason)}"
        yield f"[yellow]retried[/] {plain(trouble.name)}: attempt {trouble.token} {ago} ago: {why}"
    if found.failures:
        yield "Details: xsweep explain JOB, xsweep logs JOB. After a fix: xsweep retry SWEEP"
    for controller in found.controllers:
        dashboard = controller.dashboard_url or "no dashboard"
        yield f"Controller {controller.pid} on {plain(controller.host)}, Ray: {dashboard}"
    if found.controllers and not found.running and (found.oldest_ready_s or 0) > WAITS_S:
        yield f"The oldest ready job has been waiting for {duration(found.oldest_ready_s or 0)}"
    if not found.controllers and any(count(each, OPEN) for each in found.sweeps):
        yield "No controller is running. Next: xsweep run"


def headline(sweep: "SweepStatus", found: "Summary") -> str:
    """Return one line about a sweep: jobs done, time left, pace."""
    notes = [] if sweep.state == "active" else [sweep.state]
    if sweep.name.endswith(REHEARSAL):
        notes.append("rehearsal: tiny random models")
    note = f" ({', '.join(notes)})" if notes else ""
    return f"[bold]{plain(sweep.name)}[/]{note}: {progress_text(sweep, found)}"


def plain(text: str = "") -> str:
    """Escape Rich markup."""
    from rich.markup import escape

    return escape(text)


def _line(reason: str | None) -> str:
    return plain((reason or "").strip().partition("\n")[0])


def _sweep_table(sweep: "SweepStatus") -> "RenderableType":
    from rich import box
    from rich.table import Table

    shown = [state for state in State if count(sweep, (state,))]
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("jobs", "all")
    for state in shown:
        table.add_column(state, str(count(sweep, (state,))), justify="right")
    table.add_column("all", str(sweep.total), justify="right")
    for kind in [kind for kind in KINDS if kind in sweep.counts]:
        counts = sweep.counts[kind]
        numbers = [str(counts.get(state, "")) for state in shown]
        table.add_row(kind, *numbers, str(sum(counts.values())))
    return table


def _running_table(found: "Summary", rows: int | None) -> "RenderableType":
    """List running jobs, longest first; the last row counts those that do not fit."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=len(found.running) > 1)
    speed = sum(_figure(job, "pairs_per_s") or 0.0 for job in found.running)
    table.add_column(f"running ({len(found.running)})", "total", overflow="fold")
    table.add_column("progress", overflow="fold")
    table.add_column("pairs/s", f"{speed:,.1f}" if speed else "", justify="right")
    table.add_column("for", justify="right")
    table.add_column("left", justify="right")
    table.add_column("node", overflow="fold")
    shown = found.running if rows is None else found.running[:rows]
    for job in shown:
        progress, left_s = job.progress or {}, _figure(job, "left_s")
        pairs_per_s = _figure(job, "pairs_per_s")
        table.add_row(
            plain(job.name),
            _progress(progress),
            "" if pairs_per_s is None else f"{pairs_per_s:,.1f}",
            duration(job.since_s),
            "" if left_s is None else duration(left_s),
            plain(job.node or str(progress.get("node", ""))),
        )
    if len(shown) < len(found.running):
        table.add_row(f"… and {len(found.running) - len(shown)} more")
    return table


def _figure(job: "RunningJob", name: str) -> float | None:
    value = (job.progress or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _progress(progress: dict[str, Any]) -> str:
    """Format progress, for example `75/150 50%, loss 0.531`."""
    if not progress.get("total"):
        return ""
    done, total = progress["done"], progress["total"]
    figures = [
        f"{name} {value:.4g}"
        for name, value in progress.items()
        if name not in ("done", "total", "left_s", "pairs_per_s") and isinstance(value, int | float)
    ]
    return ", ".join([f"{done}/{total} {100 * done // total:.0f}%", *figures])


@app.command()
def status(
    ctx: typer.Context,
    sweep: Annotated[str | None, typer.Argument(help="A sweep [all].")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow until all jobs ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object of schema xsweep.status/1.")
    ] = False,
    jobs: Annotated[bool, typer.Option("--jobs", "-j", help="List the jobs.")] = False,
    state: Annotated[
        str | None, typer.Option(help=f"Only jobs in this state: {', '.join(State)}.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs to list.", min=1)] = 1000,
) -> None:
    """Show totals per sweep, running jobs, recent failures and the time left.

    \b
    Examples:
      xsweep status
      xsweep status quickstart --watch
      xsweep status --jobs --state failed
      xsweep status --json
    """
    if state is not None and state not in list(State):
        raise ConfigError(f"unknown state {state!r}: use one of {', '.join(State)}")
    from xsweep.db.status import list_jobs, summary

    engine = open_database(ctx, read_only=True)
    if jobs or state:
        rows = list_jobs(engine, sweep, state=state, limit=limit)
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
    console = _console()
    for part in page(found):
        console.print(part)


def watch_sweep(
    settings: "Settings", engine: "Engine", sweep: str | None, *, needs_controller: bool = True
) -> int:
    """Follow sweeps until all jobs ended; return 1 if some of them failed, else 0.

    Raises SetupError if a controller is needed and none runs.
    """
    from rich.console import Group
    from rich.live import Live

    from xsweep.db.status import summary
    from xsweep.orchestrator.runtime import process

    console = _console()
    seen_s = time.monotonic()
    printed: list[dict[str, dict[str, int]]] = []
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while True:
            began_s = time.monotonic()
            found = summary(engine, sweep)
            took_s = time.monotonic() - began_s
            if console.is_terminal:
                live.update(Group(*page(found, console.size.height)), refresh=True)
            elif printed != (counts := [each.counts for each in found.sweeps]):
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
            # Use at most 1% of a core, however large the table.
            time.sleep(min(60.0, max(REFRESH_S, 100 * took_s)))
    if not console.is_terminal:
        console.print(Group(*page(found)))
    return 1 if any(count(each, ("failed",)) for each in found.sweeps) else 0


def _as_json(settings: "Settings", found: "Summary") -> dict[str, Any]:
    from xsweep.db.engine import redacted

    content = asdict(found)
    for sweep, each in zip(found.sweeps, content["sweeps"], strict=True):
        each["eta_s"] = eta_s(sweep, found) if count(sweep, OPEN) else 0.0
    return {"schema": "xsweep.status/1", "database": redacted(settings.database), **content}


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console

"""The page of `xsweep status`, and the live view of it on a terminal while jobs run."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from xsweep.db.schema import OPEN, State
from xsweep.db.status import RunningJob, Summary, SweepStatus, summary
from xsweep.errors import XsweepError
from xsweep.orchestrator.forecast.eta import count, progress_text
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.settings import KINDS

REHEARSAL = "rehearsal"
"""Suffix of every rehearsal's name."""
BAR_WIDTH = 40
WAITS_S = 60.0
"""Age of the oldest ready job, with nothing running, from which it is reported."""
RETRIES_SHOWN = 3
REFRESH_S = 2.0
WIDE, HIGH = 110, 30
"""Columns from which the live view has all columns, lines from which it counts jobs by kind."""
MAX_COLLECTIONS = 6
"""Collections above which the table so far has a column for each suite instead."""


def page(found: Summary, lines: int | None = None, width: int = WIDE) -> Iterator[RenderableType]:
    """Render the page; with `lines`, running jobs have bars, and those that do not fit are counted.

    `width` in columns decides which columns running jobs have.
    """
    if not found.sweeps:
        yield "No sweep has been submitted yet. Next: xsweep submit quickstart"
    used = 0
    for sweep in found.sweeps:
        yield headline(sweep, found)
        done = count(sweep, ("done",))
        bar = ProgressBar(total=max(1, sweep.total), completed=done, width=min(BAR_WIDTH, width))
        yield Padding(bar, 0)  # a bar alone does not end its line
        used += 2
        if lines is None or lines >= HIGH:
            yield _sweep_table(sweep)
            used += 6 + len(sweep.counts)
    again = [each for each in found.troubles if each.next == "ready"][:RETRIES_SHOWN]
    used += len(found.failures) + len(again) + len(found.controllers) + 5
    if found.running:
        yield _running_table(found, None if lines is None else max(3, lines - used), width)
    for failure in found.failures:
        why = f"{failure.failure}: {_line(failure.reason)}"
        yield f"[red]failed[/] {escape(failure.name)}: {why}"
    for trouble in again:
        ago = duration(max(0.0, found.at - trouble.at))
        why = f"{trouble.failure}: {_line(trouble.reason)}"
        yield f"[yellow]retried[/] {escape(trouble.name)}: attempt {trouble.token} {ago} ago: {why}"
    if found.failures:
        yield "Details: xsweep explain JOB, xsweep logs JOB. After a fix: xsweep retry SWEEP"
    for controller in found.controllers:
        dashboard = controller.dashboard_url or "no dashboard"
        yield f"Controller {controller.pid} on {escape(controller.host)}, Ray: {dashboard}"
    if found.controllers and not found.running and (found.oldest_ready_s or 0) > WAITS_S:
        yield f"The oldest ready job has been waiting for {duration(found.oldest_ready_s or 0)}"
    if not found.controllers and any(count(each, OPEN) for each in found.sweeps):
        yield "No controller is running. Next: xsweep run"


def headline(sweep: SweepStatus, found: Summary) -> str:
    """Return one line about a sweep: jobs done, time left, pace."""
    notes = [] if sweep.state == "active" else [sweep.state]
    if sweep.name.endswith(REHEARSAL):
        notes.append("rehearsal: tiny random models")
    note = f" ({', '.join(notes)})" if notes else ""
    return f"[bold]{escape(sweep.name)}[/]{note}: {progress_text(sweep, found)}"


def _line(reason: str | None) -> str:
    return escape((reason or "").strip().partition("\n")[0])


def _sweep_table(sweep: SweepStatus) -> Table:
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


def _running_table(found: Summary, rows: int | None, width: int) -> Table:
    """List running jobs, longest first; the last row counts those that do not fit."""
    live, wide = rows is not None, rows is None or width >= WIDE
    fold: dict[str, Any] = {"no_wrap": live, "overflow": "ellipsis" if live else "fold"}
    right: dict[str, Any] = {"no_wrap": True, "justify": "right"}
    style = None if live else box.SIMPLE_HEAD
    speed = sum(_figure(job, "pairs_per_s") or 0.0 for job in found.running)
    footed = len(found.running) > 1 and (speed > 0 or not live)
    table = Table(box=style, pad_edge=False, show_footer=footed)
    table.add_column(f"running ({len(found.running)})", "total", **fold)
    columns = {
        "": (live, fold),
        "progress": (True, fold),
        "pairs/s": (True, {**right, "footer": f"{speed:,.1f}" if speed else ""}),
        "for": (wide, right),
        "left": (True, right),
        "node": (wide, fold),
    }
    for name, (has, options) in columns.items():
        if has:
            table.add_column(name, **options)
    for job in found.running[:rows]:
        progress, left_s = job.progress or {}, _figure(job, "left_s")
        pairs_per_s = _figure(job, "pairs_per_s")
        total = progress.get("total")
        cells: list[RenderableType] = [
            ProgressBar(total=total, completed=progress.get("done", 0), width=20 if wide else 12),
            _progress(progress, wide),
            "" if pairs_per_s is None else f"{pairs_per_s:,.1f}",
            duration(job.since_s),
            "" if left_s is None else duration(left_s),
            escape(job.node or str(progress.get("node", ""))),
        ]
        kept = [cell for cell, (has, _) in zip(cells, columns.values(), strict=True) if has]
        table.add_row(escape(job.name), *kept)
    if rows is not None and rows < len(found.running):
        table.add_row(f"… and {len(found.running) - rows} more")
    return table


def _figure(job: RunningJob, name: str) -> float | None:
    value = (job.progress or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _progress(progress: dict[str, Any], wide: bool) -> str:
    """Format progress, for example `75/150 50%, loss 0.531`; `50%` if not `wide`."""
    if not progress.get("total"):
        return ""
    done, total = progress["done"], progress["total"]
    percent = f"{100 * done // total:.0f}%"
    figures = [
        f"{name} {value:.4g}"
        for name, value in progress.items()
        if name not in ("done", "total", "left_s", "pairs_per_s") and isinstance(value, int | float)
    ]
    return ", ".join([f"{done}/{total} {percent}", *figures]) if wide else percent


class View:
    """Live view of one sweep, or of all that are open meanwhile, within the terminal's size."""

    def __init__(self, engine: Engine, console: Console, sweep: str | None = None) -> None:
        self.engine, self.console, self.sweep = engine, console, sweep
        self.live = Live(
            console=console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
        )
        self.pause_s = 0.0
        """Time until the next look, so that looks take at most 1% of a core."""
        self._open: set[int] = set()
        self._began_at = 0.0
        self._table: tuple[str, ...] = ()
        self._table_of: tuple[str, int, int] | None = None
        self._table_due_s = 0.0

    def refresh(self) -> Summary:
        """Look at the database and draw what it says. Raises XsweepError if it does not answer."""
        self.pause_s = REFRESH_S
        began_s = time.monotonic()
        found = summary(self.engine, self.sweep)
        self.pause_s = rest_s(time.monotonic() - began_s)
        self._began_at = self._began_at or found.at
        opened = {sweep.id for sweep in found.sweeps if count(sweep, OPEN)}
        self._open |= opened
        if not opened:
            self._table_due_s = 0.0
        shown = found
        if self.sweep is None:
            shown = replace(
                found,
                sweeps=[each for each in found.sweeps if each.id in self._open] or found.sweeps,
                failures=[job for job in found.failures if (job.ended_at or 0) >= self._began_at],
            )
        self.live.update(self._frame(shown), refresh=True)
        return found

    def _frame(self, found: Summary) -> Group:
        width, height = self.console.size
        table = self._results(found, width)
        parts = [
            _one_line(part) if isinstance(part, str) else part
            for part in page(found, height - 1 - min(len(table), height // 2), width)
        ]
        room = height - 1 - sum(len(self.console.render_lines(part)) for part in parts)
        if len(table) > room:
            table = (*table[: max(0, room - 1)], "… the rest: xsweep report")
        return Group(*parts, *(Text(line, no_wrap=True) for line in table[: max(0, room)]))

    def _results(self, found: Summary, width: int) -> tuple[str, ...]:
        """The table so far of the newest open sweep, made again after new results."""
        sweeps = [each for each in found.sweeps if count(each, OPEN)] or found.sweeps[-1:]
        for sweep in sweeps[-1:]:
            table_of = sweep.name, sweep.counts.get("evaluate", {}).get("done", 0), width
            if table_of != self._table_of and time.monotonic() >= self._table_due_s:
                began_s = time.monotonic()
                self._table = results(self.engine, sweep.name, width) if table_of[1] else ()
                self._table_of = table_of
                self._table_due_s = time.monotonic() + rest_s(time.monotonic() - began_s)
        return self._table


def _one_line(markup: str) -> Text:
    text = Text.from_markup(markup, overflow="ellipsis")
    text.no_wrap = True
    return text


def is_screen(console: Console) -> bool:
    """True on a terminal that can move its cursor; a pipe is none, whatever colours it wants."""
    return console.file.isatty() and console.is_interactive


def rest_s(took_s: float) -> float:
    """Time until the next look, so that looks take at most 1% of a core."""
    return min(60.0, max(REFRESH_S, 100 * took_s))


def results(engine: Engine, sweep: str, width: int) -> tuple[str, ...]:
    """The lines of the report's table of the main measure, without rows that have no result."""
    from xsweep.orchestrator.report import build_report, load_measures
    from xsweep.orchestrator.report.render_text import render_tables
    from xsweep.orchestrator.report.report import ReportOptions

    names, cells, _ = load_measures(engine, [sweep], ReportOptions.measures)
    stored = {name for cell in cells for name in cell.means}
    names = [name for name in names if name in stored] or sorted(stored)[:1]
    suites = len({cell.labels["collection"] for cell in cells}) > MAX_COLLECTIONS
    options = ReportOptions(measures=names, by="suite" if suites else "collection", baselines=())
    report = build_report(cells, sweep, options)
    table = report.table
    rows = [row for row in table.rows if any(table.result(row, each) for each in table.columns)]
    return ("", *render_tables(replace(report, table=replace(table, rows=tuple(rows))), width))


@contextmanager
def live_view(engine: Engine) -> Iterator[Callable[[], None]]:
    """Show running jobs, failures and the table so far below the log, if that is on a terminal.

    Gives a function that draws when it is time. The thread that logs must call it: Rich may lose
    lines that another thread prints while it draws.
    """
    console = Console(stderr=True, highlight=False)
    if not is_screen(console):
        yield lambda: None
        return
    view = View(engine, console)
    due_s = 0.0

    def draw(now: bool = False) -> None:
        nonlocal due_s
        if now or time.monotonic() >= due_s:
            with suppress(XsweepError):  # the controller logs it
                view.refresh()
            due_s = time.monotonic() + view.pause_s

    handlers = [each for each in logging.getLogger().handlers if hasattr(each, "setStream")]
    with view.live:
        for handler in handlers:
            handler.setStream(sys.stderr)  # Rich's, which prints above the view
        try:
            yield draw
        finally:
            draw(now=True)
    for handler in handlers:
        handler.setStream(sys.stderr)

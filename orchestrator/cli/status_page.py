"""What `status` and `status --watch` show, for Rich to draw."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from db.states import OPEN, State
from orchestrator.forecast import count, prospect
from orchestrator.formatting import duration
from orchestrator.settings import KINDS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from db.status import RunningJob, Summary, SweepStatus
    from db.troubles import Trouble

REHEARSAL = "rehearsal"
"""How the names of all rehearsals end."""
BAR_WIDTH = 40
WAITS_S = 60.0
"""A ready job that waits longer while nothing runs is worth a line."""
AGAIN = 3
"""Attempts that failed and are tried again, of which so many are shown."""


def page(found: "Summary", lines: int | None = None) -> "Iterator[RenderableType]":
    """All of it, or as much as fits `lines`: jobs that run are counted where they are too many."""
    if not found.sweeps:
        yield "No sweep was submitted yet: xsweep submit sweeps/quickstart.yaml"
    used = 0
    for sweep in found.sweeps:
        yield headline(sweep, found)
        yield _bar(sweep)
        yield _sweep_table(sweep)
        used += 8 + len(sweep.counts)
    again = [each for each in found.troubles if each.next == "ready"][:AGAIN]
    used += len(found.failures) + len(again) + len(found.controllers) + 8
    if found.running:
        yield _running_table(found, None if lines is None else max(3, lines - used))
    for failure in found.failures:
        yield f"[red]failed[/] {plain(failure.name)}: {failure.failure}: {_line(failure.reason)}"
    for trouble in again:
        yield _again(trouble, found)
    if found.failures:
        yield "More: xsweep explain JOB, xsweep logs JOB; once repaired: xsweep retry SWEEP"
    for controller in found.controllers:
        dashboard = controller.dashboard_url or "no dashboard"
        yield f"Controller {controller.pid} on {plain(controller.host)}, Ray: {dashboard}"
    if found.controllers and not found.running and (found.oldest_ready_s or 0) > WAITS_S:
        yield f"The oldest ready job has waited {duration(found.oldest_ready_s or 0)}"
    if not found.controllers and any(count(each, OPEN) for each in found.sweeps):
        yield "No controller is running. Next: xsweep run"


def headline(sweep: "SweepStatus", found: "Summary") -> str:
    """A sweep in a line: how much is done, how long the rest takes, how fast it goes."""
    notes = [] if sweep.state == "active" else [sweep.state]
    if sweep.name.endswith(REHEARSAL):
        notes.append("a rehearsal: tiny random models")
    note = f" ({', '.join(notes)})" if notes else ""
    return f"[bold]{plain(sweep.name)}[/]{note}: {prospect(sweep, found)}"


def plain(text: str = "") -> str:
    """Text that Rich does not take for markup."""
    from rich.markup import escape

    return escape(text)


def _line(reason: str | None) -> str:
    first = (reason or "").strip().partition("\n")[0]
    return plain(first)


def _again(trouble: "Trouble", found: "Summary") -> str:
    ago = duration(max(0.0, found.at - trouble.at))
    what = f"attempt {trouble.token} {ago} ago: {trouble.failure}: {_line(trouble.reason)}"
    return f"[yellow]again[/]  {plain(trouble.name)}: {what}"


def _bar(sweep: "SweepStatus") -> "RenderableType":
    from rich.progress_bar import ProgressBar

    done = count(sweep, ("done",))
    return ProgressBar(total=max(1, sweep.total), completed=done, width=BAR_WIDTH)


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
    """The longest running first; what does not fit is counted in the last row."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=len(found.running) > 1)
    speed = sum(_figure(job, "pairs_per_s") or 0.0 for job in found.running)
    table.add_column(f"running ({len(found.running)})", "together", overflow="fold")
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
    """`75/150 50%, loss 0.531`."""
    if not progress.get("total"):
        return ""
    done, total = progress["done"], progress["total"]
    figures = [
        f"{name} {value:.4g}"
        for name, value in progress.items()
        if name not in ("done", "total", "left_s", "pairs_per_s") and isinstance(value, int | float)
    ]
    return ", ".join([f"{done}/{total} {100 * done // total:.0f}%", *figures])

"""`explain`, `logs`, `cancel`, `pause`, `resume`, `retry`, `redo`, `drop`: inspect, steer jobs."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from xsweep.errors import ConfigError
from xsweep.orchestrator.cli.app import (
    app,
    complete_jobs,
    open_database,
    settings_of,
    sweep_argument,
)

if TYPE_CHECKING:
    from xsweep.db.jobs import Explanation
    from xsweep.orchestrator.storage.store import Store


JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job's number, name, SWEEP/NAME, or a prefix of its identity.",
        autocompletion=complete_jobs,
    ),
]
SweepName = Annotated[str, sweep_argument(metavar="SWEEP", help="A sweep's name.")]
OneJob = Annotated[bool, typer.Option("--job", help="Take the name as a job's.")]


@app.command()
def explain(ctx: typer.Context, job: JobName) -> None:
    """Explain a job's state: dependencies, attempts, sweeps that share it, nearest finished job.

    \b
    Examples:
      xsweep explain 17
      xsweep explain "train MiniLM-L6 infonce bm25_lists s1"
    """
    from xsweep.db import jobs

    found = jobs.explain(open_database(ctx, read_only=True), job)
    typer.echo(f"{found.name} (job {found.job_id}, {found.identity[:12]}): {found.state}")
    for sentence in found.why:
        typer.echo(f"  {sentence}")
    typer.echo(f"  in {', '.join(found.sweeps) or 'no sweep'}")
    for parent in () if found.state == "waiting" else found.parents:
        typer.echo(f"  {parent.role}: {parent.name} (job {parent.job_id}): {parent.state}")
    if found.nearest_done:
        near = found.nearest_done
        typer.echo(f"Nearest finished job: {near.name} (job {near.job_id}); differences:")
        for setting, (here, there) in near.differences.items():
            typer.echo(f"  {setting}: {here!r} here, {there!r} there")


@app.command()
def logs(
    ctx: typer.Context,
    job: JobName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the job ends.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(help="Number of the attempt (default: the last).")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of a training on several.", min=0)] = 0,
) -> None:
    """Print the log of a job's last attempt.

    \b
    Examples:
      xsweep logs 17
      xsweep logs 17 -f
      xsweep logs 17 --attempt 1
      xsweep logs 17 --rank 3
    """
    from xsweep.db import jobs
    from xsweep.orchestrator.storage.store import open_store

    engine = open_database(ctx, read_only=True)
    found = jobs.explain(engine, job, compare=False)
    store = open_store(settings_of(ctx).store)
    name = _log_of(store, found, attempt, rank)
    position = 0
    while True:
        # Checked before reading, so that the last lines of an ending job are printed.
        running = follow and any(held.job_id == found.job_id for held in jobs.running(engine))
        with store.fetch_file(name).open("rb") as file:
            file.seek(position)
            while piece := file.read(1 << 16):
                position += len(piece)
                typer.echo(piece, nl=False)
        if not running:
            return
        time.sleep(0.5)


def _log_of(store: "Store", found: "Explanation", attempt: int | None, rank: int) -> str:
    """Return the log's path in the store. Raises ConfigError if there is none yet."""
    tries = [each for each in found.attempts if attempt in (None, each.token)]
    if not tries or tries[-1].log is None:
        number = f"attempt {attempt}" if attempt is not None else "attempt"
        why = f": {found.why[0]}" if found.why else ""
        raise ConfigError(f"{found.name!r} has no {number} with a log yet{why}")
    name = tries[-1].log
    if rank:
        name = f"{name.removesuffix('.log')}.rank-{rank}.log"
    if not (path := store.fetch_file(name)).exists():
        raise ConfigError(f"the log {path} is not written yet, or was removed")
    return name


@app.command()
def cancel(ctx: typer.Context, name: SweepName, job: OneJob = False) -> None:
    """Cancel a sweep, or one job with --job; jobs that another sweep needs continue.

    \b
    Examples:
      xsweep cancel quickstart
      xsweep cancel --job 17
    """
    from xsweep.db import jobs

    engine = open_database(ctx)
    count = jobs.cancel(engine, job=name) if job else jobs.cancel(engine, sweep=name)
    typer.echo(f"Cancelled {count} jobs. To run them after all: xsweep retry {name}")


@app.command()
def pause(ctx: typer.Context, sweep: SweepName) -> None:
    """Start no more jobs of a sweep; running jobs continue.

    \b
    Example:
      xsweep pause quickstart
    """
    from xsweep.db import jobs

    jobs.pause(open_database(ctx), sweep)
    typer.echo(f"Paused {sweep}. To continue: xsweep resume {sweep}")


@app.command()
def resume(ctx: typer.Context, sweep: SweepName) -> None:
    """Resume a paused sweep.

    \b
    Example:
      xsweep resume quickstart
    """
    from xsweep.db import jobs

    jobs.resume(open_database(ctx), sweep)
    _print_next(ctx, f"Resumed {sweep}.")


@app.command()
def retry(
    ctx: typer.Context,
    name: SweepName,
    job: OneJob = False,
    failure: Annotated[
        list[str] | None, typer.Option(help="Only failures of this class; repeatable.")
    ] = None,
) -> None:
    """Retry failed and cancelled jobs, and the jobs that were skipped because of them.

    \b
    Examples:
      xsweep retry quickstart
      xsweep retry quickstart --failure OOM_GPU --failure NODE
      xsweep retry --job 17
    """
    from xsweep.db import jobs
    from xsweep.db.schema import RETRIES

    for each in failure or []:
        if each not in RETRIES:
            raise ConfigError(f"unknown failure class {each!r}: use one of {', '.join(RETRIES)}")
    chosen = {"job": name} if job else {"sweep": name}
    count = jobs.retry(open_database(ctx), failures=failure, **chosen)
    _print_next(ctx, f"{count} jobs will be retried.")


@app.command()
def redo(
    ctx: typer.Context,
    job: JobName,
    yes: Annotated[bool, typer.Option("--yes", help="Retire the results.")] = False,
) -> None:
    """Show what computing a finished job again would repeat, or start it with --yes.

    All finished jobs that depend on it are computed again, too. Their present results leave the
    reports; the files stay until `xsweep gc`.

    \b
    Examples:
      xsweep redo "train MiniLM-L6 infonce bm25_lists s1"
      xsweep redo 17 --yes
    """
    from xsweep.db import jobs
    from xsweep.orchestrator.formatting import duration

    found = jobs.redo(open_database(ctx, read_only=not yes), job, dry_run=not yes)
    count = f"{len(found.names)} result{'s' * (len(found.names) > 1)}"
    typer.echo(f"{'Retired' if yes else 'Would retire'} {count} ({duration(found.seconds)}):")
    for name in found.names:
        typer.echo(f"  {name}")
    if yes:
        _print_next(ctx, "They will be computed again.")
    else:
        typer.echo(f'Nothing was changed. To compute them again: xsweep redo "{job}" --yes')


@app.command()
def drop(
    ctx: typer.Context,
    sweep: SweepName,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the sweep.")] = False,
) -> None:
    """Show what removing a sweep would do, or remove it with --yes; results stay stored.

    \b
    Examples:
      xsweep drop quickstart
      xsweep drop quickstart --yes
    """
    from xsweep.db import jobs

    found = jobs.drop(open_database(ctx, read_only=not yes), sweep, dry_run=not yes)
    typer.echo(
        f"{'Removed' if yes else 'Would remove'} sweep {sweep} of {found.total} jobs: "
        f"{found.done} done, whose results stay stored; {found.shared} shared with other sweeps, "
        f"which stay; {found.cancelled} cancelled, since no other sweep needs them."
    )
    if not yes:
        typer.echo(f"Nothing was changed. To remove it: xsweep drop {sweep} --yes")


def _print_next(ctx: typer.Context, done: str) -> None:
    from xsweep.orchestrator.runtime import process

    running = process.is_running(settings_of(ctx))
    typer.echo(done if running else f"{done} Next: xsweep run")

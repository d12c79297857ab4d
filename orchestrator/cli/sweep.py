"""`plan`, `submit` and `run`: preview a grid, store its jobs, run them."""

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xsweep.errors import ConfigError
from xsweep.orchestrator.cli.app import Changes, GridFile, app, open_database, settings_of
from xsweep.orchestrator.formatting import data_size, duration, listed

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.jobs import Submission
    from xsweep.orchestrator.forecast.cost import Forecast
    from xsweep.orchestrator.forecast.cost_model import Device
    from xsweep.orchestrator.plan import Plan
    from xsweep.orchestrator.settings import Settings


SHOWN = 12
"""Lines of a list that are printed; the rest are counted."""
MORE_RANKS = 2, 4, 8
"""Numbers of ranks whose worth is shown."""

DEVICES = Path("/dev")


@app.command()
def plan(
    ctx: typer.Context,
    grid: GridFile,
    changes: Changes = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs to forecast for.")] = None,
    gpu_type: Annotated[
        str, typer.Option(help="GPU type: H200, H100, A100, L40S, A10G, L4, RTX4090, RTX3090.")
    ] = "H100",
) -> None:
    """Show a grid's jobs, skipped cells, data, disk, memory and time; store nothing.

    \b
    Examples:
      xsweep plan quickstart
      xsweep plan full_grid --data-home ~/data --gpus 8 --gpu-type H100
      xsweep plan quickstart --set name=faster --set training.lr=2e-4 --set seeds=[1,2]
    """
    from xsweep.orchestrator.plan import plan_grid

    settings = settings_of(ctx)
    planned = plan_grid(grid, settings, changes or ())
    submission = preview(settings, planned)
    show_plan(settings, planned, submission)
    show_forecast(settings, planned, gpus, gpu_type)
    if submission.refusal:
        raise ConfigError(submission.refusal)


def preview(settings: "Settings", planned: "Plan", replace: bool = False) -> "Submission":
    """Count the jobs that a submission would add; never create a database."""
    from xsweep.db import jobs

    engine = _existing_table(settings)
    if engine is None:
        total = len(planned.jobs)
        return jobs.Submission(sweep_id=None, new=total, shared=0, done=0, total=total)
    return jobs.preview(engine, name=planned.name, jobs=planned.jobs, replace=replace)


def _existing_table(settings: "Settings") -> "Engine | None":
    """Open the job table if it exists; never create it."""
    from xsweep.db.engine import connect, has_tables

    return connect(settings.database, read_only=True) if has_tables(settings.database) else None


def show_plan(settings: "Settings", planned: "Plan", submission: "Submission") -> None:
    """Print the jobs by kind, the skipped cells with their reasons, and GPUs that are not here."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in planned.kinds.items())
    typer.echo(
        f"{planned.name}: {len(planned.cells)} runs, {submission.total} jobs ({kinds}): "
        f"{submission.new} new, {submission.total - submission.new - submission.done} known, "
        f"{submission.done} done"
    )
    if submission.removed:
        typer.echo(f"{submission.removed} jobs leave the sweep; their results stay stored.")
    on_gpus = dict.fromkeys(job.kind for job in planned.jobs if job.resources.get("gpus"))
    if on_gpus and not settings.ray_address and not _has_gpu():
        typer.echo(
            f"warning: {listed([*on_gpus])} jobs ask for GPUs, which this machine lacks: leave "
            "`gpus` out of `resources`, or set RAY_ADDRESS to a cluster that has some",
            err=True,
        )
    grouped: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for cell, reason in planned.skipped:
        grouped[cell.objective, cell.teacher, reason].append(f"{cell.backbone.name} s{cell.seed}")
    if grouped:
        typer.echo(f"{len(planned.skipped)} cells skipped:")
    for (objective, teacher, reason), runs in grouped.items():
        named = ", ".join(runs) if len(runs) <= 4 else f"{len(runs)} cells"
        typer.echo(f"  {objective} × {teacher} ({named}): {reason}")


def _has_gpu() -> bool:
    """Look for the device files of NVIDIA's GPUs, also under WSL, and of AMD's."""
    return any(path for name in ("nvidia[0-9]*", "dxg", "kfd") for path in DEVICES.glob(name))


def show_forecast(
    settings: "Settings", planned: "Plan", gpus: int | None = None, gpu_type: str = "H100"
) -> None:
    """Print downloads, disk, GPU memory, device hours, wall time and the savings of shared work."""
    if planned.rehearsal:
        typer.echo("Rehearsal: models and data are tiny and generated; there is no forecast.")
        return
    from xsweep.db.results import done_identities, load_durations
    from xsweep.orchestrator.forecast.cost import forecast
    from xsweep.orchestrator.forecast.cost_model import GPUS, this_core
    from xsweep.orchestrator.grid.yaml import nearest

    if gpu_type.upper() not in GPUS:
        raise ConfigError(f"--gpu-type {gpu_type}: {nearest(gpu_type, GPUS)}")
    on_gpus = any(job.resources.get("gpus") for job in planned.jobs)
    device = GPUS[gpu_type.upper()] if on_gpus else this_core()
    devices = (gpus or 1) if on_gpus else len(os.sched_getaffinity(0))
    engine = _existing_table(settings)
    durations = load_durations(engine) if engine else []
    identities = [job.identity for job in planned.jobs]
    done = done_identities(engine, identities) if engine else frozenset()
    _show_data(planned)
    _show_space(planned, device.memory_bytes if on_gpus else None)
    _show_time(forecast(planned.jobs, device, devices, durations, done))
    _show_ranks(planned, device)


def _show_data(planned: "Plan") -> None:
    from xsweep.orchestrator.forecast.catalog import downloads

    missing = downloads(planned.jobs)
    if missing:
        known = sum(each.size_bytes or 0 for each in missing)
        unknown = sum(each.size_bytes is None for each in missing)
        note = f" and {unknown} of unknown size" if unknown else ""
        typer.echo(
            f"To download: {len(missing)} files and models, {data_size(known)}{note}; the largest:"
        )
    for each in missing[:SHOWN]:
        size = data_size(each.size_bytes) if each.size_bytes else "unknown"
        how = each.how if len(each.how) <= 90 else f"{each.how[:89]}…"
        typer.echo(f"  {size:>9}  {each.name}  ({how})")
    if planned.absent:
        typer.echo(f"{len(planned.absent)} files are missing; add them before you submit:")
    for path, what in list(planned.absent.items())[:SHOWN]:
        typer.echo(f"  {path}: {what}")
    if len(planned.absent) > SHOWN:
        typer.echo(f"  … and {len(planned.absent) - SHOWN} more")


def _show_space(planned: "Plan", gpu_bytes: float | None) -> None:
    from xsweep.orchestrator.forecast.cost_model import disk_bytes, gpu_memory_bytes

    kept = disk_bytes(planned.jobs)
    parts = ", ".join(f"{kind} {data_size(size)}" for kind, size in kept.items() if size)
    typer.echo(f"Disk for the results: about {data_size(sum(kept.values()))} ({parts})")
    if gpu_bytes is None:
        return
    needs: dict[str, float] = {}
    for job in planned.jobs:
        if job.kind == "train":
            backbone = str(job.labels.get("backbone"))
            needs[backbone] = max(needs.get(backbone, 0.0), gpu_memory_bytes(job.spec))
    shown = ", ".join(f"{name} {data_size(size)}" for name, size in needs.items())
    typer.echo(f"Peak GPU memory of a training: {shown}")
    if small := [name for name, size in needs.items() if size > gpu_bytes]:
        typer.echo(f"  {', '.join(small)} exceed {data_size(gpu_bytes)}: lower micro_batch_tokens")


def _show_ranks(planned: "Plan", device: "Device") -> None:
    """Print the speed-up of each training by more ranks; trainings that gain alike share a line."""
    from xsweep.orchestrator.forecast.cost_model import rank_speedup

    alike: dict[tuple[str, ...], dict[str, set[str]]] = {}
    all_of: dict[str, set[str]] = {}
    for job in planned.jobs:
        if job.kind == "train":
            cpus = float(job.resources.get("cpus", 1))
            gains = tuple(f"{rank_speedup(job.spec, device, cpus, n):.1f}×" for n in MORE_RANKS)
            backbone, objective = str(job.labels.get("backbone")), job.spec["objective"]["name"]
            alike.setdefault(gains, {}).setdefault(backbone, set()).add(objective)
            all_of.setdefault(backbone, set()).add(objective)
    if alike:
        unit = device.name if device.is_gpu else "processes"
        typer.echo(f"Speed of a training on {', '.join(map(str, MORE_RANKS))} {unit} (`ranks`):")
    for shown, found in sorted(alike.items()):
        names = (
            name if objectives == all_of[name] else f"{name} ({', '.join(sorted(objectives))})"
            for name, objectives in found.items()
        )
        typer.echo(f"  {', '.join(shown)}  {', '.join(names)}")


def _show_time(found: "Forecast") -> None:
    device, low, high = found.device, 1 / found.factor, found.factor
    unit = f"{device.name} hours" if device.is_gpu else "core hours"
    if not sum(found.jobs.values()):
        typer.echo("Time: no job is left to run.")
        return
    cluster = f"{found.devices} × {device.name}" if device.is_gpu else f"{found.devices} cores"
    hours = found.total_s / 3600
    typer.echo(
        f"Time on {cluster}: {hours:,.1f} {unit} ({hours * low:,.1f} to {hours * high:,.1f}), "
        f"wall {duration(found.wall_s)} ({duration(found.wall_s * low)} to "
        f"{duration(found.wall_s * high)}); "
        f"critical path {duration(found.chain_s)}"
    )
    at = "" if device.is_gpu else f" at {device.flops_per_s / 1e9:.0f} fp32 GFLOP/s per core"
    for kind, count in found.jobs.items():
        pace = found.paces[kind]
        how = f"cost model{at}; no such job measured yet"
        if pace:
            how = f"{pace.jobs} measured jobs, {pace.ratio:.2g} times the cost model"
        seconds = found.seconds[kind]
        typer.echo(f"  {kind:9} {count:6,} jobs {seconds / 3600:10,.1f} {unit}: {how}")
    read, written = found.asked_tokens
    if read:
        typer.echo(
            f"  servers read {read / 1e6:,.1f} and write {written / 1e6:,.1f} million tokens"
        )
    if device.is_gpu and not found.seconds.get("prepare"):
        typer.echo("  (preparations run on CPUs in parallel)")
    if found.alone_s > found.all_s:
        saved = 1 - found.all_s / found.alone_s
        typer.echo(
            f"Sharing tokens, candidates, teacher scores and stages saves {saved:.0%}: "
            f"{found.all_s / 3600:,.1f} hours instead of {found.alone_s / 3600:,.1f}"
        )


@app.command()
def submit(
    ctx: typer.Context,
    grid: GridFile,
    changes: Changes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; store nothing.")
    ] = False,
    start: Annotated[bool, typer.Option(help="Start a controller if none runs.")] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the sweep until it ends.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let jobs that are not in this grid leave the sweep.")
    ] = False,
) -> None:
    """Store a grid's jobs and start a controller; finished jobs never run again.

    \b
    Examples:
      xsweep submit quickstart --dry-run
      xsweep submit quickstart --watch
      xsweep submit trec_dl --data-home ~/data --no-start
      xsweep submit mine.yaml --replace
    """
    from xsweep.orchestrator.plan import plan_grid, store_plan
    from xsweep.orchestrator.runtime import process

    settings = settings_of(ctx)
    planned = plan_grid(grid, settings, changes or ())
    if dry_run:
        submission = preview(settings, planned, replace)
        show_plan(settings, planned, submission)
        show_forecast(settings, planned)
        if submission.refusal:
            raise ConfigError(submission.refusal)
        typer.echo("Dry run: nothing was stored.")
        return

    submission = store_plan(settings.database, planned, replace)
    show_plan(settings, planned, submission)
    if submission.done == submission.total:
        typer.echo("All jobs are done already. Next: xsweep report")
        return
    if start and process.start_detached(settings) is not None:
        typer.echo(f"Started a controller; its log: {settings.home / 'logs' / 'controller.log'}")
    elif not start and not process.is_running(settings):
        typer.echo("Next: xsweep run")
    if watch:
        from xsweep.orchestrator.cli.status import watch_sweep

        raise typer.Exit(watch_sweep(settings, open_database(ctx), planned.name))


@app.command()
def run(
    ctx: typer.Context,
    until_idle: Annotated[
        bool, typer.Option("--until-idle/--forever", help="Exit when no job is left, or never.")
    ] = True,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="XSWEEP_METRICS_PORT",
            show_envvar=False,
            help="Port of 127.0.0.1 for Prometheus metrics (default: XSWEEP_METRICS_PORT).",
        ),
    ] = None,
) -> None:
    """Run the controller in the foreground: it runs every stored job that is not done.

    A terminal also shows running jobs, failures and the table so far below the log.

    Ctrl-C checkpoints the running jobs, then exits; a second Ctrl-C exits at once.

    \b
    Examples:
      xsweep run
      RAY_ADDRESS=auto xsweep run --forever --metrics-port 9108
    """
    import logging

    from xsweep.orchestrator.monitoring.live import live_view
    from xsweep.orchestrator.runtime import process

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = settings_of(ctx)
    raise typer.Exit(
        process.run(settings, until_idle=until_idle, metrics_port=metrics_port, show=live_view)
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of grid files, by which editors complete and check them.

    \b
    Example:
      xsweep schema > grid.schema.json
    """
    import json

    from xsweep.orchestrator.grid.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))

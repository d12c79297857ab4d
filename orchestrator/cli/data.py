"""`data`: list, check and fetch the collections and files of a grid."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from xsweep.orchestrator.cli.app import GridFile, app, settings_of
from xsweep.orchestrator.formatting import data_size

if TYPE_CHECKING:
    from xsweep.evaluator.data.irds import Source
    from xsweep.evaluator.specs import FileSpec, IrdsSpec
    from xsweep.orchestrator.plan import Plan


data = typer.Typer(
    no_args_is_help=True, help="List, check and fetch the collections and files of a grid."
)


app.add_typer(data, name="data")


@data.command("list")
def list_files(ctx: typer.Context, grid: GridFile) -> None:
    """List a grid's inputs: presence, size, checksum, licence, source; needs no network.

    \b
    Example:
      xsweep data list trec_dl --data-home ~/data
    """
    from xsweep.evaluator.data.irds import home_of, sources
    from xsweep.evaluator.data.suites import licence

    plan = _plan(ctx, grid)
    for spec in _datasets(plan):
        found = sources(spec)
        missing = [source for source in found if not source.present]
        state = "missing" if missing else "here"
        typer.echo(f"{spec.id}  {state}, {_size(found)}, in {home_of(spec)}")
        typer.echo(f"    licence: {licence(spec.id)}")
        for source in found:
            mark = "here   " if source.present else "missing"
            size = "" if source.size_bytes is None else data_size(source.size_bytes)
            typer.echo(f"    {mark}  {size:>13}  {_md5(source):36}  {source.path}")
            if not source.present:
                typer.echo(f"             from {source.how}")
        if missing:
            typer.echo(f"    get it:  xsweep data fetch {grid}  (on a machine with network access)")
    for file in _files(plan):
        path = Path(file.path)
        size = f"{data_size(path.stat().st_size):>13}" if path.exists() else f"{'missing':>13}"
        typer.echo(f"{size}  {_declared(file):71}  {path}")


@data.command()
def check(ctx: typer.Context, grid: GridFile) -> None:
    """Verify checksums; exit code 2 if a file is missing or differs from its declaration.

    A file of ir_datasets that differs from the published one is only reported: archives are
    sometimes repacked, and the grid declares no checksum for them.

    \b
    Example:
      xsweep data check trec_dl --data-home ~/data
    """
    from xsweep.errors import DataError
    from xsweep.evaluator.data.files import checked, checksum
    from xsweep.evaluator.data.irds import sources

    plan, wrong = _plan(ctx, grid), 0
    seen: set[Path] = set()
    for spec in _datasets(plan):
        for source in sources(spec):
            if source.path in seen:
                continue
            seen.add(source.path)
            if not source.present:
                wrong += 1
                typer.echo(f"MISSING  {source.path}: get it with xsweep data fetch {grid}")
            elif not source.md5 or source.path.is_dir():
                typer.echo(f"here     {source.path}: no checksum is published")
            elif (found := checksum(source.path, "md5")) == source.md5:
                typer.echo(f"ok       {source.path}")
            else:
                typer.echo(f"other    {source.path}: md5 is {found}, published is {source.md5}")
    for file in _files(plan):
        try:
            typer.echo(f"ok       {checked(file)}")
        except DataError as problem:
            wrong += 1
            typer.echo(f"WRONG    {problem}")
    raise typer.Exit(DataError.exit_code if wrong else 0)


@data.command()
def fetch(ctx: typer.Context, grid: GridFile) -> None:
    """Download and verify missing collections; exit code 2 if a download fails.

    \b
    Example:
      xsweep data fetch full_grid
    """
    from xsweep.errors import DataError
    from xsweep.evaluator.data import irds

    failed = 0
    for spec in _datasets(_plan(ctx, grid)):
        if all(source.present for source in irds.sources(spec)):
            typer.echo(f"here     {spec.id}")
            continue
        try:
            documents = irds.fetch(spec)
            typer.echo(f"fetched  {spec.id}: {documents:,} documents")
        except DataError as problem:
            failed += 1
            typer.echo(f"FAILED   {problem}")
    raise typer.Exit(DataError.exit_code if failed else 0)


def _plan(ctx: typer.Context, grid: Path) -> "Plan":
    from xsweep.orchestrator.plan import plan_grid

    return plan_grid(grid, settings_of(ctx))


def _datasets(plan: "Plan") -> list["IrdsSpec"]:
    """Return the ir_datasets collections that the jobs read, each once."""
    from xsweep.evaluator.specs import IrdsSpec
    from xsweep.orchestrator.forecast.catalog import mappings_in

    found = {
        block["id"]: IrdsSpec(**block)
        for job in plan.jobs
        for block in mappings_in(job.spec)
        if block.get("source") == "irds"
    }
    return [found[dataset] for dataset in sorted(found)]


def _files(plan: "Plan") -> list["FileSpec"]:
    from xsweep.evaluator.specs import FileSpec
    from xsweep.orchestrator.forecast.catalog import mappings_in

    found = {
        block["path"]: FileSpec(**block)
        for job in plan.jobs
        for block in mappings_in(job.spec)
        if block.keys() == FileSpec.model_fields.keys()
    }
    return [found[path] for path in sorted(found)]


def _size(found: list["Source"]) -> str:
    return data_size(sum(source.size_bytes or 0 for source in found))


def _md5(source: "Source") -> str:
    return f"md5:{source.md5}" if source.md5 else "no checksum published"


def _declared(file: "FileSpec") -> str:
    return f"md5:{file.md5}" if file.md5 else f"sha256:{file.sha256}"

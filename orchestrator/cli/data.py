"""`data`: list, check and fetch the collections and files of a grid."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from xsweep.orchestrator.cli.app import GridFile, app, settings_of
from xsweep.orchestrator.formatting import data_size

if TYPE_CHECKING:
    from xsweep.evaluator.specs import FileSpec, IrdsSpec


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

    datasets, files = _inputs(ctx, grid)
    for spec in datasets:
        found = sources(spec)
        missing = [source for source in found if not source.present]
        state = "missing" if missing else "here"
        size = data_size(sum(source.size_bytes or 0 for source in found))
        typer.echo(f"{spec.id}  {state}, {size}, in {home_of(spec)}")
        typer.echo(f"    licence: {licence(spec.id)}")
        for source in found:
            mark = "here   " if source.present else "missing"
            size = "" if source.size_bytes is None else data_size(source.size_bytes)
            md5 = f"md5:{source.md5}" if source.md5 else "no checksum published"
            typer.echo(f"    {mark}  {size:>13}  {md5:36}  {source.path}")
            if not source.present:
                typer.echo(f"             from {source.how}")
        if missing:
            typer.echo(f"    get it:  xsweep data fetch {grid}  (on a machine with network access)")
    for file in files:
        path = Path(file.path)
        size = data_size(path.stat().st_size) if path.exists() else "missing"
        declared = f"md5:{file.md5}" if file.md5 else f"sha256:{file.sha256}"
        typer.echo(f"{size:>13}  {declared:71}  {path}")


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

    (datasets, files), wrong = _inputs(ctx, grid), 0
    for path, source in {each.path: each for spec in datasets for each in sources(spec)}.items():
        if not source.present:
            wrong += 1
            typer.echo(f"MISSING  {path}: get it with xsweep data fetch {grid}")
        elif not source.md5 or path.is_dir():
            typer.echo(f"here     {path}: no checksum is published")
        elif (found := checksum(path, "md5")) == source.md5:
            typer.echo(f"ok       {path}")
        else:
            typer.echo(f"other    {path}: md5 is {found}, published is {source.md5}")
    for file in files:
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
    for spec in _inputs(ctx, grid)[0]:
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


def _inputs(ctx: typer.Context, grid: Path) -> tuple[list["IrdsSpec"], list["FileSpec"]]:
    """Return the ir_datasets collections and the files that the jobs read, each once."""
    from xsweep.evaluator.specs import FileSpec, IrdsSpec
    from xsweep.orchestrator.forecast.catalog import mappings_in
    from xsweep.orchestrator.plan import plan_grid

    plan = plan_grid(grid, settings_of(ctx))
    blocks = [block for job in plan.jobs for block in mappings_in(job.spec)]
    datasets = {each["id"]: IrdsSpec(**each) for each in blocks if each.get("source") == "irds"}
    is_file = FileSpec.model_fields.keys()
    files = {each["path"]: FileSpec(**each) for each in blocks if each.keys() == is_file}
    return [datasets[id_] for id_ in sorted(datasets)], [files[path] for path in sorted(files)]

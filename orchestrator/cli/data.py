"""`data`: list, check and fetch the collections and files of a grid."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    from xsweep.errors import DataError
    from xsweep.evaluator.data.irds import home_of, sources
    from xsweep.evaluator.data.suites import licence

    datasets, files, folders = _inputs(ctx, grid)
    for spec in datasets:
        try:
            found = sources(spec)
        except DataError as problem:
            typer.echo(f"{spec.id}  unknown: {problem}")
            continue
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
    for folder in folders:
        parts = [path for path in folder.files if path.is_file()]
        size = data_size(sum(path.stat().st_size for path in parts))
        size = size if parts and len(parts) == len(folder.files) else "missing"
        typer.echo(f"{size:>13}  {f'sha256:{folder.sha256}':71}  {folder.path}")


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
    from xsweep.evaluator.data.irds import Source, sources

    (datasets, files, folders), wrong = _inputs(ctx, grid), 0
    known: dict[Path, Source] = {}
    for spec in datasets:
        try:
            known |= {each.path: each for each in sources(spec)}
        except DataError as problem:
            typer.echo(f"unknown  {problem}")
    for path, source in known.items():
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
    for folder in folders:
        try:
            if (found := folder.compute()) != folder.sha256:
                raise DataError(f"{folder.path}: sha256 is {found}, declared is {folder.sha256}")
            typer.echo(f"ok       {folder.path}")
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
    for spec in _inputs(ctx, grid).datasets:
        try:
            if all(source.present for source in irds.sources(spec)):
                typer.echo(f"here     {spec.id}")
                continue
            documents = irds.fetch(spec)
            typer.echo(f"fetched  {spec.id}: {documents:,} documents")
        except DataError as problem:
            failed += 1
            typer.echo(f"FAILED   {problem}")
    raise typer.Exit(DataError.exit_code if failed else 0)


class _Folder(NamedTuple):
    """A folder that jobs read: a collection or a model."""

    path: Path
    sha256: str
    files: list[Path]
    compute: Callable[[], str]


class _Inputs(NamedTuple):
    """The inputs of a grid's jobs, each once."""

    datasets: list["IrdsSpec"]
    files: list["FileSpec"]
    folders: list[_Folder]


def _inputs(ctx: typer.Context, grid: Path) -> _Inputs:
    from xsweep.evaluator.data.collection import folder_files, folder_sha256
    from xsweep.evaluator.data.files import tree_sha256
    from xsweep.evaluator.specs import FileSpec, IrdsSpec
    from xsweep.orchestrator.forecast.catalog import mappings_in
    from xsweep.orchestrator.plan import plan_grid

    datasets, files, folders = {}, {}, {}
    plan = plan_grid(grid, settings_of(ctx))
    for block in (block for job in plan.jobs for block in mappings_in(job.spec)):
        if block.get("source") == "irds":
            datasets[block["id"]] = IrdsSpec(**block)
        elif block.get("source") == "folder":
            path, split = Path(block["path"]), block["split"]
            parts, compute = folder_files(path, split), partial(folder_sha256, path, split)
            folders[path, split] = _Folder(path, block["sha256"], list(parts), compute)
        elif block.get("folder") and "layers" in block:
            path = Path(block["folder"])
            tree = [each for each in path.rglob("*") if each.is_file()]
            folders[path, ""] = _Folder(path, block["sha256"], tree, partial(tree_sha256, path))
        elif block.keys() == FileSpec.model_fields.keys():
            files[block["path"]] = FileSpec(**block)
    return _Inputs(
        [datasets[id_] for id_ in sorted(datasets)],
        [files[path] for path in sorted(files)],
        [folders[key] for key in sorted(folders)],
    )

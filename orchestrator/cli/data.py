"""`data`: list, check and fetch the collections and files of a grid."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from xsweep.orchestrator.cli.app import GridFile, app, settings_of
from xsweep.orchestrator.formatting import data_size

if TYPE_CHECKING:
    from xsweep.evaluator.specs import IrdsSpec


data = typer.Typer(
    no_args_is_help=True, help="List, check and fetch the collections and files of a grid."
)


app.add_typer(data, name="data")


@data.command("list")
def list_files(ctx: typer.Context, grid: GridFile) -> None:
    """List a grid's inputs: presence, size, checksum, licence, source; needs no network.

    \b
    Example:
      xsweep data list full_grid --data-home ~/data
    """
    from xsweep.errors import DataError
    from xsweep.evaluator.data.irds import home_of, sources
    from xsweep.evaluator.data.suites import licence

    datasets, local = _inputs(ctx, grid)
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
    for each in local:
        size = "missing"
        if each.files and all(path.is_file() for path in each.files):
            size = data_size(sum(path.stat().st_size for path in each.files))
        typer.echo(f"{size:>13}  {each.declared:71}  {each.path}")


@data.command()
def check(ctx: typer.Context, grid: GridFile) -> None:
    """Verify checksums; exit code 2 if a file is missing or differs from its declaration.

    A file of ir_datasets that differs from the published one is only reported: archives are
    sometimes repacked, and the grid declares no checksum for them.

    \b
    Example:
      xsweep data check full_grid --data-home ~/data
    """
    from xsweep.errors import DataError
    from xsweep.evaluator.data.files import checksum
    from xsweep.evaluator.data.irds import Source, sources

    (datasets, local), wrong = _inputs(ctx, grid), 0
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
    for each in local:
        try:
            typer.echo(f"ok       {each.verify()}")
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

    (datasets, local), failed = _inputs(ctx, grid), 0
    for spec in datasets:
        try:
            if all(source.present for source in irds.sources(spec)):
                typer.echo(f"here     {spec.id}")
                continue
            documents = irds.fetch(spec)
            typer.echo(f"fetched  {spec.id}: {documents:,} documents")
        except DataError as problem:
            failed += 1
            typer.echo(f"FAILED   {problem}")
    for each in local:
        try:
            if each.declared == ON_HUB:
                typer.echo(f"fetched  {each.verify()}")
        except DataError as problem:
            failed += 1
            typer.echo(f"FAILED   {problem}")
    raise typer.Exit(DataError.exit_code if failed else 0)


ON_HUB = "its commit on huggingface.co"


class _Local(NamedTuple):
    """A file, or the folder of a collection or a model, that jobs read."""

    path: Path | str
    declared: str
    files: list[Path]
    verify: Callable[[], Path]
    """Returns the path. Raises DataError where the content differs from its declaration."""


def _inputs(ctx: typer.Context, grid: Path) -> tuple[list["IrdsSpec"], list[_Local]]:
    """The inputs of a grid's jobs, each once: data sets of ir_datasets, and local ones."""
    from xsweep.errors import DataError
    from xsweep.evaluator.data.collection import folder_files, folder_sha256
    from xsweep.evaluator.data.files import checked, from_hub, parquet_files, tree_sha256
    from xsweep.evaluator.specs import HUB, FileSpec, IrdsSpec
    from xsweep.orchestrator.forecast.catalog import mappings_in
    from xsweep.orchestrator.plan import plan_grid

    datasets: dict[str, IrdsSpec] = {}
    files: dict[str, _Local] = {}
    folders: dict[tuple[Path, str], _Local] = {}
    plan = plan_grid(grid, settings_of(ctx))
    for block in (block for job in plan.jobs for block in mappings_in(job.spec)):
        if block.get("source") == "irds":
            datasets[block["id"]] = IrdsSpec(**block)
        elif block.get("source") == "folder":
            path, split = Path(block["path"]), block["split"]
            parts, compute = [*folder_files(path, split)], partial(folder_sha256, path, split)
            folders[path, split] = _folder(path, block["sha256"], parts, compute)
        elif block.get("folder") and "layers" in block:
            path = Path(block["folder"])
            parts = [each for each in path.rglob("*") if each.is_file()]
            folders[path, ""] = _folder(path, block["sha256"], parts, partial(tree_sha256, path))
        elif block.keys() == FileSpec.model_fields.keys():
            file = FileSpec(**block)
            declared = f"md5:{file.md5}" if file.md5 else f"sha256:{file.sha256}"
            place: Path | str = Path(file.path)
            parts = parquet_files(Path(file.path))
            if file.path.startswith(HUB):
                declared, place, parts = ON_HUB, file.path, []
                with suppress(DataError):
                    parts = parquet_files(from_hub(file.path, download=False)[1])
            files[file.path] = _Local(place, declared, parts, partial(checked, file))
    local = [files[key] for key in sorted(files)] + [folders[key] for key in sorted(folders)]
    return [datasets[id_] for id_ in sorted(datasets)], local


def _folder(path: Path, sha256: str, files: list[Path], compute: Callable[[], str]) -> _Local:
    from xsweep.errors import DataError

    def verify() -> Path:
        if (found := compute()) != sha256:
            raise DataError(f"{path}: sha256 is {found}, declared is {sha256}")
        return path

    return _Local(path, f"sha256:{sha256}", files, verify)

"""`data`: the files that a grid needs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.app import app, settings_of

if TYPE_CHECKING:
    from evaluator.specs import FileSpec

data = typer.Typer(no_args_is_help=True, help="The data files that a grid names: list, check.")
app.add_typer(data, name="data")

GridFile = Annotated[Path, typer.Argument(help="A grid file.", metavar="GRID")]


@data.command("list")
def list_files(ctx: typer.Context, grid: GridFile) -> None:
    """The files that a grid's jobs read: size, and the checksum that identifies them.

    \b
    Example:
      xsweep data list sweeps/trec_dl.yaml --data-home ~/data
    """
    for file in _files(ctx, grid):
        path = Path(file.path)
        size = f"{path.stat().st_size / 1e6:10.1f} MB" if path.exists() else f"{'missing':>13}"
        typer.echo(f"{size}  {_declared(file):71}  {path}")


@data.command()
def check(ctx: typer.Context, grid: GridFile) -> None:
    """Compare every file of a grid with its declared checksum; exit code 2 where one differs.

    \b
    Example:
      xsweep data check sweeps/trec_dl.yaml --data-home ~/data
    """
    from evaluator.files import checked
    from xsweep import DataError

    wrong = 0
    for file in _files(ctx, grid):
        try:
            typer.echo(f"ok       {checked(file)}")
        except DataError as problem:
            wrong += 1
            typer.echo(f"WRONG    {problem}")
    raise typer.Exit(DataError.exit_code if wrong else 0)


def _files(ctx: typer.Context, grid: Path) -> list["FileSpec"]:
    from evaluator.specs import FileSpec
    from orchestrator.plan import plan_grid

    planned = plan_grid(grid, settings_of(ctx))
    found = {
        block["path"]: FileSpec(**block)
        for job in planned.jobs
        for block in _blocks(job.spec)
        if block.keys() == FileSpec.model_fields.keys()
    }
    return [found[path] for path in sorted(found)]


def _blocks(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings inside a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _blocks(item)


def _declared(file: "FileSpec") -> str:
    return f"md5:{file.md5}" if file.md5 else f"sha256:{file.sha256}"

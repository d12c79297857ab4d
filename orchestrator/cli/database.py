"""`db`: the care of the job table."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, open_database, settings_of

database = typer.Typer(no_args_is_help=True, help="Care of the job table: upgrade, check, backup.")
app.add_typer(database, name="db")


@database.command()
def upgrade(ctx: typer.Context) -> None:
    """Create the tables, or bring older ones to this version.

    \b
    Example:
      xsweep db upgrade
    """
    from db.engine import redacted, schema_version

    engine = open_database(ctx, create=True)
    typer.echo(f"{redacted(settings_of(ctx).database)}: schema {schema_version(engine)}")


@database.command()
def check(ctx: typer.Context) -> None:
    """Verify that the table obeys its own rules; exit code 1 where it does not.

    \b
    Example:
      xsweep db check
    """
    from db.check import check as find_violations

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
    from db.engine import backup as copy_database

    copy_database(open_database(ctx), path)
    typer.echo(f"Wrote {path}")

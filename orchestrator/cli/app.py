"""The Typer application: global options, and the one place that maps errors to exit codes."""

import codecs
import gc
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from typer.core import TyperGroup

from xsweep import __version__
from xsweep.errors import ConfigError, XsweepError, field_error
from xsweep.orchestrator.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def _find_grid(path: Path) -> Path:
    from xsweep.orchestrator.grid.load import find_grid

    return find_grid(path)


Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value in place of the file's; repeatable."),
]
GridFile = Annotated[
    Path,
    typer.Argument(
        help="A grid file, or the name of a shipped grid such as quickstart.",
        metavar="GRID",
        callback=_find_grid,
    ),
]


class BashWord(str):
    """A value that bash inserts as it is; Typer compares it with what is typed, unescaped."""

    def startswith(self, *_: Any) -> bool:
        """Accept: values are selected already."""
        return True


def _from_database(
    ctx: typer.Context, values: "Callable[[Engine], Iterable[str]]"
) -> Iterable[str]:
    """Values of the job table; none without one, where a message would spoil the command line."""
    from xsweep.db.engine import connect

    settings = load_settings(database=ctx.find_root().params.get("db"))
    with suppress(XsweepError):
        return values(connect(settings.database, read_only=True))
    return []


def complete_sweeps(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Complete the name of a sweep, or after `--job` of a job."""
    from xsweep.db.status import sweeps

    if ctx.params.get("job"):
        return complete_jobs(ctx, incomplete)
    return _from_database(ctx, lambda engine: [sweep.name for sweep in sweeps(engine)])


def complete_jobs(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Complete the name of a job; bash needs a backslash before each space, or a quote."""
    from xsweep.db.status import job_names

    names = _from_database(ctx, lambda engine: job_names(engine, incomplete))
    words = os.environ.get("COMP_WORDS", "'")  # bash's alone
    if "'" in words or '"' in words:
        return names
    return [BashWord(re.sub(r"([^\w./:@%+=,-])", r"\\\1", name)) for name in names]


def complete_measures(ctx: typer.Context) -> Iterable[str]:
    """Complete a measure: those that are stored, or the usual ones."""
    from xsweep.db.results import measures

    return _from_database(ctx, measures) or ("nDCG@10", "RR@10", "AP", "R@100", "R@1000")


sweep_argument = partial(typer.Argument, autocompletion=complete_sweeps)
measure_option = partial(typer.Option, "--measure", "-m", autocompletion=complete_measures)
format_option = partial(typer.Option, "--format", "-f")

GLOBAL_OPTIONS = ("--db", "--store", "--data-home", "--ray-address")
INTERRUPTED = 130
ORDER = (
    *("init", "plan", "submit", "run", "status", "report", "compare", "explain", "logs"),
    *("serve", "metrics", "track", "cancel", "pause", "resume", "retry", "redo", "drop"),
    *("evaluate", "data", "schema", "export", "import", "gc", "db", "store", "doctor", "version"),
)
"""Commands in `--help`, in the order in which a newcomer needs them; others follow."""


class Program(TyperGroup):
    """Run a command; every error ends as one message on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands in the order of `--help`."""
        rank = {name: place for place, name in enumerate(ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: rank.get(name, len(ORDER)))

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the program; a reader that has seen enough (`| head`) is no error."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error("plain", _plain)
            sys.stdout.reconfigure(errors="plain")
        try:
            return super().main(*args, **settings)
        except SystemExit as end:
            try:
                sys.stdout.flush()
                closed = isinstance(end.__context__, BrokenPipeError)
            except BrokenPipeError:
                closed = True
            if not closed:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the named command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except XsweepError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except typer.BadParameter as error:
            # Newer versions of Typer read values by pydantic, whose messages lack the value.
            problems: list[Any] = getattr(error.__cause__, "errors", list)()
            if error.param is None or not problems:
                raise
            typer.echo(f"error: {field_error(error.param.opts[0], problems[0])}", err=True)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if hasattr(error, "exit_code"):  # a wrong option or argument: Typer reports it
                raise
            place = _write_crash(load_settings().home)
            message = f"error: {type(error).__name__}: {error}\nThe full traceback is in {place}"
            typer.echo(message, err=True)
            raise typer.Exit(1) from None


PLAIN = {"−": "-", "–": "-", "─": "-", "▲": "^", "▼": "v", "±": "+-", "×": "x", "…": "..."}
"""Replacement of a sign that the output's encoding lacks; for others a question mark."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in lacking), error.end


def _write_crash(home: Path) -> Path | str:
    trace = traceback.format_exc()
    path = home / "logs" / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"xsweep {__version__}, {sys.version}\n{trace}")
    except OSError:
        return f"no file ({path.parent} is not writable):\n{trace}"
    return path


app = typer.Typer(
    cls=Program,
    name="xsweep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(given: bool) -> None:
    if given:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _settings(
    ctx: typer.Context,
    db: Annotated[
        str | None,
        typer.Option(help="Database (default: XSWEEP_DB, .xsweep/xsweep.db).", metavar="URL"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Folder of all results (default: XSWEEP_STORE, .xsweep/store)."),
    ] = None,
    data_home: Annotated[
        Path | None,
        typer.Option(help="Folder of your data, ${data_home} (default: XSWEEP_DATA_HOME)."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster (default: RAY_ADDRESS, or a new one)."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Train and compare cross-encoder re-rankers: a grid file in, tables for a paper out.

    \b
    First steps:
      xsweep doctor                check this installation
      xsweep submit demo           plan, store and start the demo
      xsweep status --watch        follow it
      xsweep report                print its table

    \b
    Exit codes: 0 success, 1 some jobs failed, 2 wrong input, 3 wrong environment.
    """
    if db and urlsplit(db).password:
        raise ConfigError(
            "--db with a password shows it to every user of this machine, in the list of "
            "processes: set XSWEEP_DB to this URL instead"
        )
    ctx.obj = load_settings(database=db, store=store, ray_address=ray_address, data_home=data_home)


def settings_of(ctx: typer.Context) -> Settings:
    """Return the settings from global options, environment and defaults."""
    settings = ctx.obj
    assert isinstance(settings, Settings)
    return settings


def open_database(ctx: typer.Context, *, create: bool = False, read_only: bool = False) -> "Engine":
    """Open the job table; commands that only read work while others write, and without rights.

    Raises SetupError if it is missing, newer or unreachable.
    """
    from xsweep.db.engine import connect

    return connect(settings_of(ctx).database, create=create, read_only=read_only)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `xsweep` and `python -m xsweep.orchestrator`."""
    # Imports create many long-lived objects; collecting among them took a tenth of the start-up.
    gc.set_threshold(100_000)
    given = sys.argv[1:] if arguments is None else arguments
    app(args=_global_options_first(given), prog_name="xsweep")


def _global_options_first(arguments: list[str]) -> list[str]:
    """Accept `--db` and the other global options after the command as well."""
    moved, rest = [], []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in GLOBAL_OPTIONS:
            moved += [word, *[value for value in [next(words, None)] if value is not None]]
        elif word.split("=")[0] in GLOBAL_OPTIONS:
            moved.append(word)
        else:
            rest.append(word)
    return moved + rest

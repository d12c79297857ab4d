"""Fixtures that every package's tests share."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from chaos import CHAOS, Account, table
from postgresql import administer
from sqlalchemy import Engine

from db.engine import connect

PROJECT = Path(__file__).resolve().parent.parent
counter = itertools.count()
accounts: list[Account] = []

# The deadline of an example would measure how busy the machine is; tests have time limits.
hypothesis.settings.register_profile("xsweep", deadline=None)
hypothesis.settings.load_profile("xsweep")


@pytest.fixture
def tell() -> Callable[[Account], None]:
    """Takes what a test with faults has to tell, for the summary of `make chaos`."""
    return accounts.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests with faults have told."""
    if CHAOS and accounts:
        terminalreporter.section("chaos: what was killed, and what became of the jobs")
        for line in table(accounts):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real TREC and BEIR data, where this machine has one."""
    folder = Path(os.environ.get("XSWEEP_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set XSWEEP_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of our own, with a database `model` that holds the empty tables."""
    import pgserver

    # below /tmp and not pytest's folder: the path of its socket may have no more than 100 letters
    folder = (
        Path("/tmp") / f"xsweep-postgresql-{tmp_path_factory.getbasetemp().name}-{next(counter)}"
    )
    shutil.rmtree(folder, ignore_errors=True)
    server = pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri()
    # the tests kill clients, not the server's machine: no need to wait for the disk
    administer(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    administer(url, "CREATE DATABASE model")
    connect(url.replace("/postgres?", "/model?"), create=True).dispose()
    yield url
    server.cleanup()


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A database with the empty tables, for one test."""
    name = f"test_{next(counter)}"
    administer(postgresql_server, f"CREATE DATABASE {name} TEMPLATE model")
    yield postgresql_server.replace("/postgres?", f"/{name}?")
    administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that holds the empty tables."""
    path = tmp_path_factory.mktemp("model") / "model.db"
    connect(f"sqlite:///{path}", create=True).dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the empty tables, once per kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql_url")
    shutil.copy(request.getfixturevalue("sqlite_model"), tmp_path / "xsweep.db")
    return f"sqlite:///{tmp_path / 'xsweep.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An open, empty database, once per kind."""
    engine = connect(url)
    yield engine
    engine.dispose()

"""Every test of this room runs on SQLite and on a real PostgreSQL server, unless it names one."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import administer
from sqlalchemy import Engine

from db.engine import connect

counter = itertools.count()


@pytest.fixture
def empty_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A database without tables, for one test."""
    name = f"test_{next(counter)}"
    administer(postgresql_server, f"CREATE DATABASE {name}")
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

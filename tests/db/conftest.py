"""Fixtures of the database tests; `engine` and `url` are in the common conftest."""

import itertools
from collections.abc import Iterator

import pytest
from postgresql import administer

counter = itertools.count()


@pytest.fixture
def empty_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A database without tables, for one test."""
    name = f"test_{next(counter)}"
    administer(postgresql_server, f"CREATE DATABASE {name}")
    yield postgresql_server.replace("/postgres?", f"/{name}?")
    administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")

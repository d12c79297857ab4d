"""A half-done sweep and a server that shows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_sweep import Served, Serving, half_done


@pytest.fixture(scope="session")
def half_done_sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The database's URL and the store."""
    return half_done(tmp_path_factory.mktemp("served"))


@pytest.fixture
def served(half_done_sweep: tuple[str, Path]) -> Iterator[Served]:
    with Serving(*half_done_sweep) as found:
        yield found

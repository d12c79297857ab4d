"""Fixtures that every package's tests share."""

import gc
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from chaos import CHAOS, Account, table
from postgresql import administer, run_server
from sqlalchemy import Engine

from xsweep.db.engine import connect

PROJECT = Path(__file__).resolve().parent.parent
counter = itertools.count()
accounts: list[Account] = []

# Until all tests are imported, see below.
gc.disable()

# Threads on matrices this small, in lanes beside each other, only wait for each other; and a nice
# Ray worker would wait for every test that computes.
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
os.environ |= {"RAY_prestart_worker_first_driver": "0"}

# The deadline of an example would measure how busy the machine is; tests have time limits.
hypothesis.settings.register_profile("xsweep", deadline=None)
hypothesis.settings.load_profile("xsweep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first: no lane begins one when the others end."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] += mark.args[0]
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Let no garbage collection walk what the imports of all tests have made."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def report_account() -> Callable[[Account], None]:
    """Adds the account of a test with faults to the summary of `make chaos`."""
    return accounts.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the accounts of the tests with faults."""
    if CHAOS and accounts:
        terminalreporter.section("chaos: kills and their outcomes")
        for line in table(accounts):
            terminalreporter.write_line(line)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home in an empty working folder, with the settings of nobody's shell."""
    for name in ("XSWEEP_DB", "XSWEEP_STORE", "XSWEEP_DATA_HOME", "RAY_ADDRESS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real TREC and BEIR data, where this machine has one."""
    folder = Path(os.environ.get("XSWEEP_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set XSWEEP_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a server of our own, with a database `model` that holds the empty tables."""
    with run_server() as (url, _):
        administer(url, "CREATE DATABASE model")
        connect(url.replace("/postgres?", "/model?"), create=True).dispose()
        yield url


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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow(0.1))])
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

"""A PostgreSQL server of the benchmark's own, its databases, and the CPU seconds it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def cpu_of_server(pid: int | None) -> float:
    """CPU seconds of a PostgreSQL server's processes up to now, of those that ended too."""
    if pid is None:
        return 0.0
    postmaster = psutil.Process(pid)
    while True:
        ended = postmaster.cpu_times()
        seconds = ended.children_user + ended.children_system
        try:
            for process in [postmaster, *postmaster.children()]:
                times = process.cpu_times()
                seconds += times.user + times.system
        except psutil.NoSuchProcess:  # it ends now: its time moves to the postmaster's children
            continue
        return seconds


@contextmanager
def postgresql(given: str | None, folder: Path) -> Iterator[tuple[str, int | None]]:
    """URL of a server whose role may create databases, and its process if it runs here."""
    if given:
        yield given, None
        return
    import pgserver

    server = pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri(), server.get_pid()
    server.cleanup()


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
        yield server.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def load() -> str:
    return Path("/proc/loadavg").read_text().split()[0]

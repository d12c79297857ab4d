"""PostgreSQL servers of our own, each in a new folder, and statements that no transaction holds."""

import atexit
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock
from sqlalchemy import create_engine, text


@contextlib.contextmanager
def run_server() -> Iterator[tuple[str, Callable[..., None]]]:
    """URL of a new server, and its `pg_ctl`; nothing of it is left, whoever stopped it."""
    import pgserver
    from pgserver._commands import pg_ctl

    # not pytest's folder: the path of a server's socket may have no more than 100 letters
    folder = Path(tempfile.mkdtemp(prefix="xsweep-postgresql-", dir="/tmp"))
    # as root, the package adds a system user and takes no lock for it
    with FileLock(f"/tmp/xsweep-postgresql-{os.getuid()}.lock"):
        server = pgserver.get_server(folder, cleanup_mode=None)

    def control(*arguments: str) -> None:
        log = ("-l", str(folder / "log"))
        pg_ctl(["-w", "-m", "immediate", *log, *arguments], pgdata=folder, user=server.system_user)

    try:
        # the tests kill processes, not the machine: no need to wait for the disk
        administer(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield server.get_uri(), control
    finally:
        # not by the package: it stops no process but the first, and fails where that is gone
        with contextlib.suppress(subprocess.CalledProcessError):
            control("stop")
        server.cleanup()
        atexit.unregister(server._cleanup)
        shutil.rmtree(folder)


def administer(url: str, *statements: str) -> None:
    """Run statements outside of transactions."""
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()

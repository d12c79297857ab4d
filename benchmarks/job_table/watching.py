"""What `xsweep status --watch` costs the database while it looks at a large table."""

import argparse
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from growth import cells
from servers import cpu_of_server, database, load, postgresql
from sqlalchemy import text

from xsweep.db import jobs
from xsweep.db.engine import connect

ALLOWED = 0.01
"""Of a core."""
SETTLE_S = 5.0


def watching(options: argparse.Namespace) -> int:
    """Print the share of a core for each database and size; 1 if one is above the bar, else 0."""
    shares: list[float] = []
    print(f"`status --watch` for {options.seconds:.0f} s; load {load()}\n")
    print("| | jobs | database, of a core | with the program's own |\n|---|---|---|---|")
    with (
        TemporaryDirectory(prefix="xsweep-benchmark-", dir="/tmp") as folder,
        postgresql(options.server, Path(folder) / "server") as (server, pid),
    ):
        for place in options.databases:
            for size in options.sizes:
                with database(server, "benchmark") as url:
                    if place == "sqlite":
                        url = f"sqlite:///{folder}/watch-{size}.db"
                    fill(url, size)
                    program, served = watch(url, folder, pid, options.seconds)
                # SQLite is a part of the program: all of that counts as the database's
                share = program if place == "sqlite" else served
                shares.append(share)
                both = program if place == "sqlite" else program + served
                print(f"| {place} | {size:,} | {share:.2%} | {both:.2%} |", flush=True)
    return 1 if max(shares) > ALLOWED else 0


def fill(url: str, size: int) -> None:
    """A table of a size in which something has been done, runs and has failed."""
    engine = connect(url, create=True)
    jobs.add_sweep(engine, name="s", grid="", jobs=list(cells(size)))
    for _ in range(10):
        for claim in jobs.claim(engine, owner="benchmark", limit=2, lease_s=3600):
            sealed = {"folder": "nowhere", "manifest_sha256": claim.identity}
            result = jobs.NewResult(lease=claim.lease, **sealed, summary={}, provenance={})
            jobs.finish(engine, [result])
    jobs.claim(engine, owner="benchmark", limit=8, lease_s=3600)
    if engine.dialect.name == "postgresql":
        # What the server tidies up after so many new rows is no cost of watching them.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
            connection.execute(text("CHECKPOINT"))
    engine.dispose()


def watch(url: str, home: str, server: int | None, seconds: float) -> tuple[float, float]:
    """Shares of a core that the program and the server took, once the program has started."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XSWEEP_DB": url, "XSWEEP_HOME": f"{home}/home", "TERM": "xterm"}
    command = [sys.executable, "-m", "xsweep.orchestrator", "status", "--watch"]
    process = subprocess.Popen(command, env=environment, stdout=theirs, stdin=theirs)
    os.close(theirs)
    drain = threading.Thread(target=_read_all, args=(ours,), daemon=True)
    drain.start()
    time.sleep(SETTLE_S)
    program = psutil.Process(process.pid)
    before_s, served_before_s = sum(program.cpu_times()[:2]), cpu_of_server(server)
    time.sleep(seconds)
    program_s = sum(program.cpu_times()[:2]) - before_s
    served_s = cpu_of_server(server) - served_before_s
    process.terminate()
    process.wait()
    return program_s / seconds, served_s / seconds


def _read_all(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # a terminal ends so when its program has ended
        os.close(terminal)

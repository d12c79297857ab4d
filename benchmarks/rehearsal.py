"""The study's whole DAG on this machine, with faults: every job real, every model and text tiny.

    python benchmarks/rehearsal.py [--database postgresql] [--backbones 9] [--objectives 6]
                                   [--seeds 3] [--fault-every-s 60] [--fault-seed 1]

Submits sweeps/rehearsal.yaml (or a part of it) to a job table of its own and runs it with the
project's own controller on a local Ray cluster, while processes are killed with SIGKILL at random
times: workers in the middle of their jobs, the controller, and, with PostgreSQL, the server as in
a crash. It ends with the tables of all cells in the folder `reports/rehearsal`, and fails unless
every job is done, each has one accepted result, no cell is empty and `xsweep db check` finds the
invariants kept. Run again, it goes on with what is missing.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearsal_faults import Faults

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, as any benchmark


REFUSED = 20
"""How often a controller may find its environment wrong before the rehearsal gives up."""


@dataclass
class Place:
    """Where this rehearsal lives, and how its commands are called."""

    home: Path
    database: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        """`xsweep` of this source tree."""
        return [sys.executable, "-m", "xsweep.orchestrator", *arguments]

    def xsweep(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            called = f"xsweep {' '.join(arguments)}"
            raise SystemExit(f"{called} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self) -> subprocess.Popen:
        """A controller, its output added to the log."""
        with (self.home / "controller.log").open("a") as log:
            return subprocess.Popen(
                self.command("run"), env=self.environment, cwd=ROOT, stdout=log, stderr=log
            )


def slice_of_the_grid(
    folder: Path, backbones: int, objectives: int, seeds: int
) -> tuple[Path, int]:
    """A grid file with the first so many of each, and how many of the table's 54 rows it keeps."""
    from xsweep.orchestrator.grid.load import read_grid

    whole, _ = read_grid(ROOT / "sweeps" / "rehearsal.yaml", folder)
    names = {
        "backbone": [each.name for each in whole.backbones],
        "objective": list(whole.objectives),
        "seed": list(whole.seeds),
    }
    kept = {"backbone": backbones, "objective": objectives, "seed": seeds}
    left_out = [
        f"  - {{{axis}: {json.dumps(names[axis][kept[axis] :])}}}"
        for axis in names
        if names[axis][kept[axis] :]
    ]
    if not left_out:
        return ROOT / "sweeps" / "rehearsal.yaml", len(names["backbone"]) * len(names["objective"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("full_grid.yaml", "rehearsal.yaml"):
        shutil.copyfile(ROOT / "sweeps" / name, folder / name)
    grid = folder / "slice.yaml"
    text = ["extends: rehearsal.yaml", "name: slice-rehearsal", "exclude:", *left_out]
    grid.write_text("\n".join(text) + "\n")
    return grid, min(backbones, 9) * min(objectives, 6)


@contextmanager
def database(kind: str, home: Path) -> Iterator[tuple[str, Callable[[], None] | None]]:
    """URL of a job table's database, and what restarts its server as after a crash."""
    if kind == "sqlite":
        yield f"sqlite:///{home / 'xsweep.db'}", None
        return
    import pgserver
    from pgserver._commands import pg_ctl

    # The path of its socket may have no more than 100 letters.
    name = hashlib.sha256(bytes(home.resolve())).hexdigest()[:8]
    folder = Path("/tmp") / f"xsweep-rehearsal-{os.getuid()}-{name}"  # noqa: S108
    server = pgserver.get_server(folder, cleanup_mode=None)
    where = {"pgdata": server.pgdata, "user": server.system_user}

    def restart() -> None:
        log = ["-l", str(folder / "restarted.log")]
        pg_ctl(["-w", "-m", "immediate", *log, "restart"], **where)

    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://"), restart
    finally:
        # Not by the package, which stops no other process than the one that it started.
        pg_ctl(["-w", "-m", "fast", "stop"], **where)


def run(place: Place, faults: Faults) -> float:
    """Runs the sweep to its end whatever is killed; the seconds that it took."""
    began_s = time.monotonic()
    controller, refused = place.start(), 0
    try:
        while True:
            code = controller.poll()
            if code is None:
                faults.strike(controller)
                time.sleep(0.5)
            elif code == -signal.SIGKILL or (code == 3 and refused < REFUSED):
                refused += code == 3  # its database was away
                controller = place.start()
            else:
                break
    finally:
        if controller.poll() is None:
            controller.terminate()
            controller.wait()
    return time.monotonic() - began_s


def account(place: Place, sweep: str, cells: int) -> list[str]:
    """What became of the jobs, as lines; raises SystemExit where something is lost or doubled."""
    from sqlalchemy import func, select

    from xsweep.db.check import check
    from xsweep.db.engine import connect
    from xsweep.db.events import history
    from xsweep.db.schema import Attempt, Job, Result
    from xsweep.db.transaction import read

    engine = connect(place.database)

    def counted_by(column: Any) -> Counter[str]:
        query = select(column, func.count()).group_by(column)
        return Counter(dict(map(tuple, read(engine, lambda c: c.execute(query).all()))))

    states, kinds, outcomes = map(counted_by, (Job.state, Job.kind, Attempt.outcome))
    results = read(engine, lambda c: c.scalar(select(func.count()).select_from(Result))) or 0
    accepted = Counter(e.job_id for e in history(engine, latest=10**7) if e.kind == "accepted")
    broken = check(engine)
    engine.dispose()
    report = json.loads(place.xsweep("report", sweep, "--format", "json"))
    places = report["places"]
    rows = {each["name"] for each in places if each["system"] == "run"}
    columns = {each["collection"] for each in places}
    filled = sum(each["mean"] is not None and not each["unfinished"] for each in places)
    expected = (len(rows) + 1) * len(columns)
    total = sum(states.values())
    lost, doubled = total - states["done"], sum(accepted.values()) - len(accepted)
    lines = [
        f"jobs      {total:,}: {_counted(kinds)}",
        f"attempts  {sum(outcomes.values()):,}: {_counted(outcomes)}",
        f"lost      {lost}",
        f"doubled   {doubled} ({results:,} results, {len(accepted):,} accepted)",
        f"cells     {len(rows)} rows × {len(columns)} collections and the first stage: "
        f"{filled} of {expected} places filled",
        f"db check  {broken or 'invariants kept'}",
    ]
    wrong = lost or doubled or broken or results != states["done"]
    if wrong or filled != expected or len(rows) != cells:
        raise SystemExit("\n".join([*lines, "THE REHEARSAL FAILED"]))
    return lines


def _counted(of: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(of.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Rehearses, accounts for every job and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--home", type=Path, help="default: .xsweep/rehearsal/DATABASE")
    parser.add_argument("--backbones", type=int, default=9)
    parser.add_argument("--objectives", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fault-every-s", type=float, default=60.0, help="mean; 0 for none")
    parser.add_argument("--fault-seed", type=int, default=1)
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "rehearsal")
    options = parser.parse_args(arguments)
    home = (options.home or Path(".xsweep/rehearsal") / options.database).absolute()
    home.mkdir(parents=True, exist_ok=True)
    grid, cells = slice_of_the_grid(
        home / "grid", options.backbones, options.objectives, options.seeds
    )
    with database(options.database, home) as (url, restart):
        place = Place(home, url)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XSWEEP_", "RAY_"))}
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        place.environment = inherited | {
            "XSWEEP_HOME": str(home),
            "XSWEEP_DB": url,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # Two workers on matrices this small: more threads only wait for each other.
            "OMP_NUM_THREADS": "1",
        }
        began_s = time.monotonic()
        said = place.xsweep("submit", str(grid), "--no-start", "--data-home", str(home))
        print(said.splitlines()[0], flush=True)
        submitted_s = time.monotonic() - began_s
        faults = Faults(place.home, options.fault_every_s, options.fault_seed, restart)
        took_s = run(place, faults)
        sweep = "rehearsal" if grid.name == "rehearsal.yaml" else "slice-rehearsal"
        lines = account(place, sweep, cells)
        options.reports.mkdir(parents=True, exist_ok=True)
        for format, ending in (("latex", "tex"), ("text", "txt")):
            further = ["--standalone"] if format == "latex" else []
            out = options.reports / f"{options.database}.{ending}"
            place.xsweep("report", sweep, "--format", format, *further, "-o", str(out))
        jobs = int(lines[0].split()[1].strip(":").replace(",", ""))
        killed = _counted(faults.counts) or "nothing"
        lines = [
            f"rehearsal on {options.database}, {len(os.sched_getaffinity(0))} cores",
            f"time      submitted in {submitted_s:.0f} s, run in {took_s:.0f} s, "
            f"{took_s / jobs:.2f} s per job",
            f"killed    {killed}",
            *lines,
            f"tables    {options.reports}/{options.database}.tex and .txt",
        ]
        text = "\n".join(lines) + "\n"
        (options.reports / f"{options.database}-summary.txt").write_text(text)
        print(text, end="")


if __name__ == "__main__":
    main()

"""`make slurm-test`: docker/slurm.sh on a Slurm cluster of two nodes, made here of namespaces.

Two allocations share both nodes. The time limit of the first comes while it trains: its jobs save,
it is queued again and continues. The second is not disturbed. Needs root and Debian's packages
slurmctld, slurmd, slurm-client and munge; takes about five minutes.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.hosts import INSIDE, OUTSIDE, Host, die_with_parent, enter
from tests.postgresql import administer, run_server
from tests.tiny import write_study
from tests.waiting import wait_for
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.events import history
from xsweep.db.status import list_jobs, summary

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
PROJECT = Path(__file__).resolve().parents[2]
CONFIGURATION = """\
ClusterName=trial
SlurmctldHost={name}({address})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
SchedulerParameters=sched_interval=5
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=2 RealMemory=4000"


class Slurm:
    """Munge, the controller, and a daemon on each of two hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = [Host(name, 11 + n, folder) for n, name in enumerate(("east", "west"))]
        nodes = "\n".join(NODE.format(name=h.name, address=h.address) for h in self.hosts)
        place = {"name": socket.gethostname(), "address": OUTSIDE, "folder": folder}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(nodes=nodes, **place))
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        paths = {"key-file": "munge.key", "socket": "munge.socket", "seed-file": "munge.seed"}
        paths |= {"pid-file": "munge.pid", "log-file": "munge.log"}
        options = [f"--{name}={folder / path}" for name, path in paths.items()]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._serve("munged", "--force", "--foreground", *options)
        wait_for((folder / "munge.socket").exists, what="munge")
        self._serve("slurmctld", "-D", "-c")
        for host in self.hosts:
            self._serve(*host.inside("slurmd", "-D", "-N", host.name))
        wait_for(lambda: self.ask("sinfo", "-h", "-o", "%D %t") == "2 idle", what="both nodes")

    def _serve(self, *command: str) -> None:
        log = (self.folder / f"{Path(command[-1]).name}.log").open("w")
        subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, preexec_fn=die_with_parent
        )

    def ask(self, *command: str, **environment: str) -> str:
        """The output of one of Slurm's commands; nothing where it fails."""
        done = subprocess.run(
            command, env=self.environment | environment, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    def submit(self, name: str, url: str, steps: int, *options: str) -> str:
        """Queue docker/slurm.sh with a small study of its own; returns the allocation's number."""
        folder = self.folder / name
        folder.mkdir()
        grid = write_study(folder, steps=steps)
        return self.ask(
            *("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", f"--chdir={folder}"),
            *("--output=out.log", *options, str(PROJECT / "docker" / "slurm.sh"), str(grid)),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            PYTHONPATH=str(PROJECT),
            HOME=str(folder),
            OMP_NUM_THREADS="1",
            XSWEEP_DB=url,
            XSWEEP_HOME=str(folder / "home"),
            XSWEEP_STORE=str(folder / "store"),
            XSWEEP_DATA_HOME=str(folder),
        )


def main() -> int:
    """Runs both allocations and checks what they leave; 3 where Slurm is not installed."""
    missing = [
        tool for tool in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(tool)
    ]
    if missing:
        print(f"the Slurm test was NOT run: this machine has no {', '.join(missing)}")
        return 3
    folder = Path(os.environ[INSIDE])
    folder.chmod(0o755)
    began_s = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {text}", flush=True)

    slurm = Slurm(folder)
    tell("two nodes are idle")
    with run_server() as (url, _):
        administer(url, "CREATE DATABASE long", "CREATE DATABASE short")
        urls = {name: url.replace("/postgres?", f"/{name}?") for name in ("long", "short")}
        # Slurm warns up to a minute earlier than it is asked to: 60 to 120 s after the start
        limit = ("--time=3", "--signal=B:TERM@60")
        numbers = [slurm.submit("long", urls["long"], 5000, *limit)]
        numbers.append(slurm.submit("short", urls["short"], 100))
        try:
            show = ("scontrol", "show", "job", numbers[0])
            wait_for(lambda: "Restarts=1" in slurm.ask(*show), 300, "the time limit")
            tell("the long allocation's time was up, and it is queued again")
            # at once and without a limit: Slurm itself would wait two minutes
            slurm.ask("scontrol", "update", f"JobId={numbers[0]}", "TimeLimit=60", "StartTime=now")
            for name, database in urls.items():
                engine = connect(database, create=True)
                while not _is_done(engine):
                    assert slurm.ask("squeue", "-h"), f"the queue is empty before {name} is done"
                    time.sleep(1)
                assert check(engine) == []
                tokens = {job.name: job.token for job in list_jobs(engine, "tiny", kind="train")}
                stops = [event for event in history(engine) if event.kind == "released"]
                tell(f"{name}: all jobs done; attempts of trainings: {tokens}")
                if name == "short":
                    assert (set(tokens.values()), stops) == ({1}, [])
                    continue
                assert set(tokens.values()) == {2}
                assert len(stops) == 2
                logs = folder.glob("long/store/jobs/train/*/*/attempt-2*.log")
                resumed = [re.findall(r"resuming after step .*", path.read_text()) for path in logs]
                assert len(resumed) == 2
                assert all(resumed)
                tell(f"both trainings were stopped by the time limit: {resumed}")
            wait_for(lambda: slurm.ask("squeue", "-h") == "", what="the queue to be empty")
            left = [path for number in numbers for path in Path("/tmp").glob(f"xsweep-{number}*")]
            left += folder.glob("*/.xsweep-ray-token-*")
            assert left == []
            tell("the queue is empty, and no folder or token is left")
        except BaseException:
            for log in sorted(folder.glob("*/out.log")):
                print(f"== {log}\n{log.read_text()}", flush=True)
            raise
    return 0


def _is_done(engine) -> bool:
    counts = [kinds for sweep in summary(engine).sweeps for kinds in sweep.counts.values()]
    return bool(counts) and all(state == "done" for kind in counts for state in kind)


if __name__ == "__main__":
    enter("tests.cluster.slurm")
    sys.exit(main())

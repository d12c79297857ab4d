"""The cluster under test: three hosts with Ray, PostgreSQL on one, a store that all of them see."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psutil

from tests.cluster.hosts import INSIDE, Host, die_with_parent, run
from tests.tiny import write_study
from tests.waiting import wait_for

PROJECT = Path(__file__).resolve().parents[2]
ENTRYPOINT = PROJECT / "docker" / "entrypoint.sh"
STORE_MB = 400
STEPS = 300
"""Enough for a training of some seconds, so that there is a middle to be hit in."""
LEASE_S = 20.0
"""Of the controllers under test: a third of the default, so that waiting for it is bearable."""

COUNT_NODES = """
import sys
from ray._raylet import GcsClient

nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print(sum(node.state == 0 for node in nodes.values()))
"""


class Service:
    """A process that is started again whenever it ends, as a container engine does it."""

    def __init__(
        self, command: list[str], log: Path, environment: Mapping[str, str], *, restart: bool = True
    ) -> None:
        self.log, self.starts = log, 0
        self._command, self._environment, self._restart = command, dict(environment), restart
        self._lock = threading.Lock()
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def stop(self) -> None:
        """End it for good, with all that it has started."""
        self._restart = False
        # What enters a host is not the program itself, which is its child.
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            for number in (signal.SIGTERM, signal.SIGKILL):
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.send_signal(number)
                psutil.wait_procs(children, timeout=10)
        self.process.wait()

    def leave(self) -> None:
        """Let it end when it ends, without another start."""
        self._restart = False

    def wait(self, timeout_s: float) -> int:
        """Its exit code, where it is not started again."""
        return self.process.wait(timeout_s)

    def _start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent,
            )
        self.starts += 1

    def _keep(self) -> None:
        while True:
            code = self.process.wait()
            time.sleep(0.5)
            if not self._restart or code == 0:
                return
            self._start()


class Site:
    """Three hosts: `head` (Ray's head, PostgreSQL, the controller), `east` and `west` (jobs)."""

    def __init__(self) -> None:
        self.folder = Path(os.environ[INSIDE])
        self.folder.chmod(0o755)
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={STORE_MB}m", "tmpfs", str(self.shared))
        self.head, self.east, self.west = (
            Host(name, 11 + number, self.folder)
            for number, name in enumerate(("head", "east", "west"))
        )
        token = self.folder / "ray-token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.password = secrets.token_hex(16)
        kept = ("PATH", "HOME", "LANG", "HF_HOME", "TMPDIR")
        self.environment = {
            **{key: os.environ[key] for key in kept if key in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": f"{self.head.address}:6379",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "XSWEEP_NODE_RUNS": "1",
            "XSWEEP_LEASE_S": str(LEASE_S),
            "COLUMNS": "120",
        }
        self.nodes: dict[str, Service] = {}

    def start(self) -> None:
        """PostgreSQL, then Ray's head, then both workers; ready when all three nodes answer."""
        self._create_database_server()
        self.nodes["head"] = self._serve(
            *(self.head, "head", f"--node-ip-address={self.head.address}"),
            # the dashboard is ten processes that nobody looks at here
            *("--include-dashboard=False", "--include-log-monitor=False"),
        )
        wait_for(self.answers, what="Ray's head")
        for host in (self.east, self.west):
            self.nodes[host.name] = self._serve(
                *(host, "worker", "--num-cpus=1", f"--node-ip-address={host.address}"),
                "--include-log-monitor=False",
            )
        write_study(self.folder / "study", steps=STEPS)
        wait_for(lambda: self.living() >= 3, 180, "all nodes to be in the cluster")

    def close(self) -> None:
        """End everything; the folder goes with this program."""
        for service in self.nodes.values():
            service.leave()
        for host in (self.head, self.east, self.west):
            host.crash()
        run("umount", "--lazy", str(self.shared))

    def mend(self, *, crash: bool = False) -> None:
        """Put all cables back, and wait until every node is in the cluster.

        With `crash`, what still runs there is killed before.
        """
        for host in (self.east, self.west):
            host.mend()
            if crash:
                host.crash()
        wait_for(lambda: self.living() >= 3, 180, "all nodes to be in the cluster")

    def living(self) -> int:
        """How many nodes Ray's head believes to be alive; 0 while it does not answer.

        Seldom asked, since each question is a program: a head that is away ends who asks.
        """
        time.sleep(2.0)
        done = subprocess.run(
            [sys.executable, "-c", COUNT_NODES, self.environment["RAY_ADDRESS"]],
            env={**self.environment, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return int(done.stdout or 0)

    def tails(self) -> str:
        """The ends of all logs, for whoever has to find out."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("homes/*/logs/*")]
        return "\n".join(f"== {log}\n{log.read_text()[-2500:]}" for log in sorted(logs))

    def answers(self) -> bool:
        """Whether Ray's head listens."""
        command = self.head.inside("sh", "-c", f"echo > /dev/tcp/{self.head.address}/6379")
        command[-3] = "bash"
        return subprocess.run(command, capture_output=True).returncode == 0

    def _serve(self, host: Host, *arguments: str) -> Service:
        command = host.inside(str(ENTRYPOINT), *arguments)
        return Service(command, self.folder / f"{host.name}.log", self.environment)

    def _create_database_server(self) -> None:
        import pgserver

        programs = Path(pgserver.__file__).parent / "pginstall" / "bin"
        self._programs = programs
        data = self.folder / "postgresql"
        data.mkdir()
        secret = self.folder / "password"
        secret.write_text(self.password)
        for path in (data, secret):
            shutil.chown(path, "nobody", "nogroup")
        self._data = data
        self._as_nobody(
            *(str(programs / "initdb"), "--pgdata", str(data), "--username=xsweep"),
            *("--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--no-sync"),
        )
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.231.0.0/24 scram-sha-256\n")
        self.start_database()

    def start_database(self) -> None:
        """Start PostgreSQL on its host and wait until it answers."""
        options = f"-h {self.head.address} -k {self._data} -c fsync=off"
        self._as_nobody(
            *(str(self._programs / "pg_ctl"), "--pgdata", str(self._data), "--wait"),
            *(f"--log={self._data}/server.log", "-o", options, "start"),
        )

    def stop_database(self) -> None:
        """Stop it as an operator in a hurry does: without waiting for its clients."""
        self._as_nobody(
            *(str(self._programs / "pg_ctl"), "--pgdata", str(self._data)),
            *("--mode=immediate", "stop"),
        )

    def url(self, database: str) -> str:
        """Of a database, as a client on any host gives it."""
        password = quote(self.password, safe="")
        return f"postgresql+psycopg://xsweep:{password}@{self.head.address}:5432/{database}"

    def _as_nobody(self, *command: str) -> None:
        # PostgreSQL refuses to run as root.
        as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        done = subprocess.run(
            self.head.inside(*as_nobody, *command),
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}")


class Sweep:
    """One submission of the tiny study to a database and a store of its own."""

    def __init__(self, site: Site, name: str, **environment: str) -> None:
        self.site, self.name = site, name
        self.home = site.folder / "homes" / name
        self.store = site.shared / name
        self.url = site.url(name)
        self.environment = {
            **site.environment,
            "XSWEEP_DB": self.url,
            "XSWEEP_HOME": str(self.home),
            "XSWEEP_STORE": str(self.store),
            **environment,
        }
        _create_database(site.url("postgres"), name)
        # From outside: the submitter reaches the database and nothing else.
        self.xsweep("db", "upgrade")
        self.xsweep("submit", str(site.folder / "study" / "tiny.yaml"), "--no-start")

    def xsweep(self, *arguments: str, code: int | None = 0) -> str:
        """What the program prints, run outside of the cluster; None: whatever its exit code."""
        environment = {k: v for k, v in self.environment.items() if not k.startswith("RAY_")}
        done = subprocess.run(
            ["xsweep", *arguments],
            env=environment,
            cwd=self.site.folder / "study",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if code is not None and done.returncode != code:
            raise RuntimeError(f"xsweep {' '.join(arguments)}: {done.returncode}\n{done.stdout}")
        return done.stdout

    def control(self, *, restart: bool = True) -> Service:
        """A controller on the head's host, which leaves when nothing is left to do."""
        command = self.site.head.inside(str(ENTRYPOINT), "controller", "--until-idle")
        log = self.site.folder / f"{self.name}.log"
        return Service(command, log, self.environment, restart=restart)

    def report(self) -> str:
        """The final report, which must be the same to the byte whatever happened."""
        return self.xsweep("report", "tiny", "--format", "json")

    def status(self) -> dict:
        """`xsweep status --json`."""
        return json.loads(self.xsweep("status", "--json"))


def _create_database(server: str, name: str) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()

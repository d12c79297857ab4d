"""`make image-test`: builds docker/Dockerfile and runs docker/compose.yaml under podman, on CPUs.

The demo's sweep runs on PostgreSQL, a head, two workers and a controller. A worker is killed, then
everything is stopped and started again. No registry is needed: debootstrap makes the base of the
image and, under the name that the compose file uses, an image of PostgreSQL. The build uses this
machine's settings of pip. Needs root, Debian's packages of `TOOLS`, podman-compose 1.5 or newer
(pip), Debian's and Python's package servers, and 12 GB in the temporary folder; takes about ten
minutes. Nothing is left behind.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.waiting import wait_for

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = ("buildah", "podman", "runc", "debootstrap", "podman-compose")
LIBRARIES = ("netavark", "aardvark-dns")
"""Programs that podman looks for in its own folders."""
RUN = ("--runtime=runc", "--network=host", "--ulimit=nofile=1024:20000", "--ulimit=nproc=9000:9000")
ENGINE = """\
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=9000:9000"]
[network]
network_backend = "netavark"
[engine]
runtime = "runc"
"""
POSTGRESQL = """\
FROM localhost/trixie
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-17
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data
COPY --chmod=755 start-postgresql /
ENTRYPOINT ["/start-postgresql"]
"""
START_POSTGRESQL = """\
#!/bin/sh -eu
as_owner() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install --directory --owner=postgres --mode=700 "$PGDATA"
  echo "$POSTGRES_PASSWORD" > /tmp/password
  chown postgres /tmp/password
  as_owner initdb --username="$POSTGRES_USER" --encoding=UTF8 --pwfile=/tmp/password \\
    --auth-host=scram-sha-256 --auth-local=trust
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  as_owner pg_ctl start --wait --options="-c listen_addresses="
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB" --maintenance-db=postgres
  as_owner pg_ctl stop --wait
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -c "listen_addresses=*"
"""


def main() -> int:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing or os.geteuid():
        print(f"needs root and {', '.join(TOOLS)}; missing: {', '.join(missing) or 'root'}")
        print(f"apt-get install {' '.join(TOOLS[:-1] + LIBRARIES)}; pip install podman-compose")
        return 3
    with tempfile.TemporaryDirectory(prefix="xsweep-image-") as name:
        folder = Path(name)
        configure(folder)
        try:
            build(folder)
            deployed(folder)
        finally:
            say("removing containers and images")
            call("podman", "rm", "--all", "--force", "--time=1", check=False)
            call("podman", "rmi", "--all", "--force", check=False)
    return 0


def configure(folder: Path) -> None:
    """Give podman and buildah a storage and settings of their own in the folder."""
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\n'
    files = {
        "CONTAINERS_CONF": ENGINE,
        "CONTAINERS_STORAGE_CONF": f'{storage}runroot = "{folder}/run"\n',
        "CONTAINERS_REGISTRIES_CONF": 'unqualified-search-registries = ["localhost"]\n',
    }
    for variable, text in files.items():
        path = folder / f"{variable.lower()}.conf"
        path.write_text(text)
        os.environ[variable] = str(path)


def build(folder: Path) -> None:
    """Make the images `xsweep` and `postgres:17`."""
    for suite in ("bookworm", "trixie"):
        say(f"debootstrap {suite}")
        root = folder / suite
        include = "--include=ca-certificates"
        call("debootstrap", "--variant=minbase", include, suite, root, output=folder / "build.log")
        packed = folder / f"{suite}.tar"
        call("tar", "--create", "--directory", root, "--file", packed, ".")
        call("podman", "import", "--quiet", packed, f"localhost/{suite}")
        packed.unlink()
        shutil.rmtree(root)
    say("building xsweep")
    files = ["--file", PROJECT / "docker/Dockerfile", "--tag", "localhost/xsweep"]
    base = "--build-arg=BASE=localhost/bookworm"
    began_s = time.monotonic()
    command = ["buildah", "build", *RUN, base, *pip_settings(folder), *files, PROJECT]
    call(*command, output=folder / "build.log")
    say(f"built in {time.monotonic() - began_s:.0f} s")
    say("building postgres:17")
    context = folder / "postgresql"
    context.mkdir()
    (context / "Dockerfile").write_text(POSTGRESQL)
    (context / "start-postgresql").write_text(START_POSTGRESQL)
    tag = "docker.io/library/postgres:17"
    call("buildah", "build", *RUN, "--tag", tag, context, output=folder / "build.log")


def pip_settings(folder: Path) -> list[str]:
    """Options that give a build this machine's settings of pip, and the files that they name."""
    listed = call(sys.executable, "-m", "pip", "config", "list").splitlines()
    settings: dict[str, str] = {}
    for line in listed:
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    (folder / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())])
    )
    words = (word.removeprefix("file://") for value in settings.values() for word in value.split())
    paths = {Path(word) for word in words if word.startswith("/")}
    kept = {path for path in paths if path.exists()}
    # An index of files refers to them by a path beside its own.
    kept |= {path.parent for path in kept if path.name == "simple"}
    volumes = [f"--volume={path}:{path}:ro" for path in sorted(kept)]
    return [f"--volume={folder}/pip.conf:/etc/pip.conf:ro", *volumes]


def deployed(folder: Path) -> None:
    """Run the demo as the compose file says, with a worker killed and one restart of everything."""
    compose = folder / "compose.yaml"
    yaml = YAML(typ="safe")
    content = yaml.load(PROJECT / "docker/compose.yaml")
    for service in content["services"].values():
        service.pop("build", None)
        service.pop("deploy", None)  # this machine has no GPU
    yaml.dump(content, compose)
    (folder / "ray-token").write_text(secrets.token_hex(32))
    os.environ["XSWEEP_DB_PASSWORD"] = secrets.token_hex(16)
    start(compose)
    say(inside("xsweep", "doctor"))
    inside("bash", "-lc", "command -v ray xsweep wget")  # as KubeRay would
    say(inside("xsweep", "submit", "sweeps/demo.yaml", "--no-start"))
    node = wait_for(training_node, 600, "a training")
    say(f"killing the worker {node}, which trains")
    call("podman", "kill", node)
    wait_for(lambda: jobs_done() >= 8, 600, "two trainings")
    say("stopping everything, as docker compose would: who depends on others first")
    order = ["controller_1", "worker_1", "worker_2", "head_1", "database_1"]
    for name in order:
        call("podman", "stop", "--time=130", f"xsweep_{name}")
    assert "stopping: waiting for" in call("podman", "logs", "xsweep_controller_1")
    call("podman", "start", "xsweep_database_1")
    await_database()
    for name in reversed(order[:-1]):
        call("podman", "start", f"xsweep_{name}")
    wait_for(lambda: jobs_done() == status()["sweeps"][0]["total"], 900, "the end of the sweep")
    say(inside("xsweep", "db", "check"))
    say(inside("xsweep", "report", "demo", "--measure", "nDCG@10"))


def start(compose: Path) -> None:
    """Create and start all services, the database first."""
    up = ("podman-compose", "--file", compose, "up", "--detach", "--no-build")
    log = compose.with_name("compose.log")
    call(*up, "database", output=log)
    await_database()
    call(*up, "--scale", "worker=2", output=log)
    wait_for(lambda: succeeds(*EXEC, "xsweep", "status"), 120, "the controller")


def await_database() -> None:
    """Wait until it is healthy, as compose would; podman checks that only when it is asked."""
    healthy = ("podman", "healthcheck", "run", "xsweep_database_1")
    wait_for(lambda: succeeds(*healthy), 60, "the database")


EXEC = ("podman", "exec", "xsweep_controller_1")


def inside(*command: str) -> str:
    """Run a command in the controller's container; its output."""
    return call(*EXEC, *command)


def status() -> dict[str, Any]:
    return json.loads(inside("xsweep", "status", "--json"))


def jobs_done() -> int:
    return sum(states.get("done", 0) for states in status()["sweeps"][0]["counts"].values())


def training_node() -> str | None:
    """The host of a training that has shown progress."""
    trains = (job for job in status()["running"] if job["kind"] == "train" and job["progress"])
    return next((job["node"] for job in trains), None)


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def call(*command: str | Path, output: Path | None = None, check: bool = True) -> str:
    """Run a program; its output, which is appended to a file if one is given."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if output:
        with output.open("a") as file:
            file.write(done.stdout)
    if check and done.returncode:
        print(done.stdout[-5_000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

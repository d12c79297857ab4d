"""Runs the program as a user does: as a process, in a folder of its own."""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from xsweep.orchestrator.cli import app
from xsweep.orchestrator.runtime import ray_cluster


class Workplace:
    """A folder with a tiny study, and the program `xsweep` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".xsweep"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XSWEEP_")}
        kept.pop("RAY_ADDRESS", None)
        self.environment = {**kept, "COLUMNS": "120"}
        # One core: one worker does all, and importing torch into each is most of its work here.
        self.environment |= {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}
        self._started: list[Popen[str]] = []

    def start(self, *arguments: str) -> Popen[str]:
        """The program, running."""
        process = Popen(
            [sys.executable, "-m", "xsweep.orchestrator", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def xsweep(self, *arguments: str, code: int = 0) -> str:
        """What the program prints; it must end with `code`."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run a command in this process and return its output; it must exit with `code`.

        Saves a second of imports; only for commands that start no process.
        """
        with contextlib.chdir(self.folder), patch.dict(os.environ, self.environment, clear=True):
            result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return result.output

    def status(self) -> dict:
        """`xsweep status --json`."""
        return json.loads(self.command("status", "--json"))

    def close(self) -> None:
        """End what a test that failed may have left, and the cluster."""
        for process in self._started:
            process.kill()
            process.wait()
        ray_cluster.stop_local(self.home)


@pytest.fixture(scope="session")
def workplace_in() -> Iterator[Callable[[Path], Workplace]]:
    """Makes workplaces, and ends the clusters that they may have left."""
    places: list[Workplace] = []

    def make(folder: Path) -> Workplace:
        places.append(Workplace(folder))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    yield (place := Workplace(tmp_path))
    place.close()


@contextlib.contextmanager
def ray_nodes(folder: Path, cpus: Sequence[str]) -> Iterator[tuple[dict[str, str], Popen[str]]]:
    """A cluster of nodes: the environment for a program that uses it, and its process."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    process = Popen(
        [sys.executable, str(Path(__file__).with_name("several_nodes.py")), *cpus],
        env={**os.environ, **ours, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        told = next((line for line in process.stdout if line.startswith("address ")), "")
        assert told, "the nodes did not come up"
        yield {**ours, "RAY_ADDRESS": told.split()[1]}, process
        process.stdin.close()
        process.wait(60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def several_nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Environment for a program that uses a cluster with the module's NODES as CPUs."""
    with ray_nodes(tmp_path_factory.mktemp("several"), request.module.NODES) as (ours, _):
        yield ours


@pytest.fixture(scope="session")
def shared_ray(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, str], Popen[str]]]:
    """A cluster of one core for tests that leave it as it was: one worker does all."""
    with ray_nodes(tmp_path_factory.mktemp("shared"), ["1"]) as cluster:
        yield cluster


@pytest.fixture
def end_workers(shared_ray: tuple[dict[str, str], Popen[str]]) -> Callable[[], None]:
    """Ends all workers of the cluster that tests share."""
    _, cluster = shared_ray

    def end() -> None:
        print("end them", file=cluster.stdin, flush=True)
        assert cluster.stdout
        assert any("no actors" in line for line in cluster.stdout)

    return end


@pytest.fixture
def guest(
    workplace: Workplace,
    shared_ray: tuple[dict[str, str], Popen[str]],
    end_workers: Callable[[], None],
) -> Iterator[Workplace]:
    """A workplace on the cluster that tests share; its workers end with the test."""
    workplace.environment |= shared_ray[0]
    yield workplace
    workplace.close()
    end_workers()

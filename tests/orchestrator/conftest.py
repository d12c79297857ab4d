"""Runs the program as a user does: as a process, in a folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import head


class Workplace:
    """A folder with a tiny study, and the program `xsweep` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".xsweep"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XSWEEP_")}
        kept.pop("RAY_ADDRESS", None)
        self.environment = {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The program, running."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def xsweep(self, *arguments: str, code: int = 0) -> str:
        """What the program prints; it must end with `code`."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    def status(self) -> dict:
        """`xsweep status --json`."""
        return json.loads(self.xsweep("status", "--json"))


@pytest.fixture(scope="session")
def workplace_in() -> Iterator[Callable[[Path], Workplace]]:
    """Makes workplaces, and ends the clusters that they may have left."""
    places: list[Workplace] = []

    def make(folder: Path) -> Workplace:
        places.append(Workplace(folder))
        return places[-1]

    yield make
    for place in places:
        head.stop_local(place.home)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    yield (place := Workplace(tmp_path))
    head.stop_local(place.home)

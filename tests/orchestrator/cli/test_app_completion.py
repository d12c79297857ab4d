"""Values that a shell offers for options and arguments, in a real bash and a real zsh."""

import os
import pty
import re
import select
import shlex
import shutil
import sys
import termios
from pathlib import Path

import pytest
from finished_sweep import submit, work
from typer.testing import CliRunner

from xsweep.db.engine import connect
from xsweep.db.schema import State
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.report import FORMATS
from xsweep.orchestrator.settings import KINDS, STATES

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep `demo` in `.xsweep`, and the command itself in `bin`."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "bin").mkdir()
    program = folder / "bin" / "xsweep"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m xsweep.orchestrator "$@"\n'
    )
    program.chmod(0o755)
    (folder / ".xsweep").mkdir()
    engine = connect(f"sqlite:///{folder / '.xsweep' / 'xsweep.db'}", create=True)
    submit(engine)
    work(engine, until=2)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XSWEEP_DB", "XSWEEP_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def offered(line: str) -> list[str]:
    """The lines that the program prints for a bash whose user presses TAB at the line's end."""
    last = str(len(re.findall(r"(?<!\\) ", line)))
    environment = {"_XSWEEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": last}
    return CliRunner().invoke(app, env=environment, prog_name="xsweep").stdout.strip().splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("xsweep status ", ["demo"]),
        ("xsweep report d", ["demo"]),
        ("xsweep compare --sweep ", ["demo"]),
        ("xsweep status --state ", list(STATES)),
        ("xsweep status --kind t", ["teach", "train"]),
        ("xsweep report --format ", list(FORMATS)),
        ("xsweep compare -f ", ["text", "markdown", "csv", "json"]),
        ("xsweep report --measure ", ["nDCG@10"]),
        ("xsweep explain train", [r"train\ s1", r"train\ s2", r"train\ s3"]),
        (r"xsweep redo evaluate\ B", [r"evaluate\ BM25"]),
        ("xsweep cancel --job train", [r"train\ s1", r"train\ s2", r"train\ s3"]),
        ("xsweep cancel ", ["demo"]),
        ("xsweep --db sqlite:///missing.db status ", []),
    ],
)
def test_values_are_offered(here: Path, line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_without_stored_measures_the_usual_ones_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    assert offered("xsweep evaluate m --measure R") == ["RR@10", "R@100", "R@1000"]
    assert list(tmp_path.iterdir()) == []


def test_the_states_are_those_of_the_job_table() -> None:
    assert tuple(State) == STATES
    assert "train" in KINDS


class Shell:
    """A shell at a pseudo terminal, where TAB completes."""

    def __init__(self, *command: str, folder: Path) -> None:
        self.read = ""
        pid, self.file = pty.fork()
        if pid == 0:
            os.chdir(folder)
            place = f"{folder / 'bin'}:{os.environ['PATH']}"
            kept = {"PATH": place, "HOME": str(folder), "TERM": "dumb", "PS1": "$ "}
            os.execvpe(command[0], command, kept)
        termios.tcsetwinsize(self.file, (24, 200))

    def type(self, keys: str, until: str) -> re.Match[str]:
        """Press keys; what the shell then prints up to a pattern."""
        os.write(self.file, keys.encode())
        while not (found := re.search(until, self.read)):
            assert select.select([self.file], [], [], LIMIT_S)[0], self.read
            self.read += os.read(self.file, 4096).decode(errors="replace")
        self.read = self.read[found.end() :]
        return found


SHELLS = {
    "bash": (
        ("bash", "--norc", "--noprofile", "-i"),
        "bind 'set enable-bracketed-paste off'",
    ),
    "zsh": (("zsh", "-f", "-i"), "autoload -U compinit; compinit -u -D; unsetopt beep"),
}


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_completes_a_sweep_and_a_job_with_spaces(here: Path, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on this machine: apt-get install {name}")
    command, setup = SHELLS[name]
    shell = Shell(*command, folder=here)
    script = f"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 xsweep --show-completion {name}"
    shell.type(f'{setup}; eval "$({script})"; echo rea""dy\n', "ready")
    for typed, completed in (
        ("xsweep status d", "<xsweep><status><demo>"),
        ("xsweep report --measure n", "<xsweep><report><--measure><nDCG@10>"),
        ("xsweep explain evaluate\\ B", "<xsweep><explain><evaluate BM25>"),
        ('xsweep explain "evaluate B', "<xsweep><explain><evaluate BM25>"),
    ):
        # `printf` in front shows the completed line's words
        shell.type(f"{typed}\t\x01printf '<%s>' \n", re.escape(completed))
    os.close(shell.file)

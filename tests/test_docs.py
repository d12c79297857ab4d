"""The documentation names what there is: keys of a grid file, paths, tests, numbers of jobs."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from generate_grid_reference import grid_reference
from pydantic import BaseModel
from ruamel.yaml import YAML
from tiny import write_beir

import xsweep
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.grid import schema
from xsweep.orchestrator.grid.schema import Range
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import AshaSpec

PROJECT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted(PROJECT.glob("docs/*.md"))]
FOLDERS = "db|evaluator|trainer|orchestrator|xsweep|sweeps|benchmarks|tests|docs|docker"
STUDY = (PROJECT / "docs" / "study.md").read_text()
REFERENCE = (PROJECT / "docs" / "grid.md").read_text()
MODELS = (
    schema.Grid,
    schema.Collection,
    schema.Backbone,
    schema.Teacher,
    schema.Objective,
    schema.Match,
    schema.Override,
    schema.Search,
    Range,
    AshaSpec,
    schema.TrainingSettings,
    schema.Validation,
    schema.Evaluation,
    schema.Need,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_reference_names_every_key_of_a_grid_file(model: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", REFERENCE))
    assert set(model.model_fields) <= words, set(model.model_fields) - words


def test_the_reference_names_every_objective() -> None:
    assert set(OBJECTIVES) <= set(re.findall(r"`(\w+)`", REFERENCE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_and_paths_in_the_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    text = re.sub(r"(?<=Write )`[\w./]+`(?=:\s)", "", text)  # files that a reader is to make
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)", text):
        assert (PROJECT / path).exists(), f"{document.name} names {path}"


def test_the_grid_reference_is_what_the_models_say() -> None:
    command = "python docs/generate_grid_reference.py > docs/grid-reference.md"
    assert (PROJECT / "docs" / "grid-reference.md").read_text() == grid_reference(), command


def test_commands_of_benchmarks_name_scripts_and_options_that_there_are() -> None:
    for document in DOCUMENTS:
        text = " ".join(document.read_text().split())
        for script, options in re.findall(r"python (benchmarks/[\w/.]+)([^`]*)`", text):
            path = PROJECT / script
            files = path.rglob("*.py") if path.is_dir() else [path]
            source = "".join(file.read_text() for file in files)
            for option in re.findall(r"--[\w-]+", options):
                assert re.search(rf"{option}(?![\w-])", source), (
                    f"{document.name}: {script} {option}"
                )


def yaml_blocks(document: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (PROJECT / "docs" / document).read_text(), re.DOTALL)


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """A folder with the tutorial's data, and what of its teachers is a file."""
    write_beir(tmp_path / "mine", "train", "dev", "test")
    for name in ("llm.run", "scores.tsv", "teacher-a/config.json", "teacher-b/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_tutorials_grid_and_teachers_are_planned(tutorial: Path) -> None:
    whole, *teachers = yaml_blocks("tutorial.md")
    settings = Settings(
        home=tutorial / "home", database="", store="", ray_address=None, data_home=None
    )
    path = tutorial / "mine.yaml"
    path.write_text(whole)
    # 1 backbone x 2 objectives x 3 seeds; each, and BM25, on one collection. Candidates of three
    # splits, and one token store, since they share their documents.
    assert plan_grid(path, settings).kinds == {"prepare": 4, "train": 6, "evaluate": 7}

    added = "".join(block.removeprefix("teachers:\n") for block in teachers)
    objectives = (
        "  margin_mse: {teachers: biencoder}\n"
        "  distill_ranknet: {teachers: [llm, scored, ensemble]}\n"
    )
    whole = whole.replace("objectives:\n", f"{added}objectives:\n{objectives}")
    path.write_text(whole)
    kinds = plan_grid(path, settings).kinds
    assert kinds["train"] == 6 + 4 * 3
    assert kinds["teach"] == 2


def test_the_cluster_scripts_are_well_formed() -> None:
    subprocess.run(["bash", "-n", PROJECT / "docker" / "slurm.sh"], check=True)
    parts = list(YAML(typ="safe").load_all(PROJECT / "docker" / "kuberay.yaml"))
    assert [part["kind"] for part in parts] == ["PersistentVolumeClaim", "RayCluster", "Deployment"]


def test_the_studys_page_counts_what_is_planned(tmp_path: Path) -> None:
    """Each row of its table against the plan; the others are in test_plan_study.py."""
    rows = dict(
        re.findall(r"^\| `(\w+)\.yaml` \|[^|]*\| ([\d,]+ \| [\d,]+) \|", STUDY, re.MULTILINE)
    )
    assert rows["full_grid"] == "162 | 3,564"
    settings = Settings(
        home=tmp_path / "home", database="", store="", ray_address=None, data_home=tmp_path
    )
    planned_elsewhere = {"full_grid", "scaling", "bm25_top100", "same_negatives"}
    for name in rows.keys() - planned_elsewhere - {"mini_study_transfer"}:
        planned = plan_grid(PROJECT / "sweeps" / f"{name}.yaml", settings)
        systems = Counter(job.labels["system"] for job in planned.jobs if job.kind == "evaluate")
        assert rows[name] == f"{planned.kinds['train']:,} | {systems['run']:,}"


def test_every_fault_names_a_test_that_there_is() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (PROJECT / "docs" / "faults.md").read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (PROJECT / file).read_text(), f"{file} has no {test}"


@pytest.mark.slow(5)
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(tmp_path)))
    pages = {path.parent.name: path.read_text() for path in tmp_path.glob("*/index.html")}
    assert {path.stem for path in PROJECT.glob("docs/*.md")} <= pages.keys()
    assert 'href="../tutorial/"' in pages["commands"]
    for name in app.registered_commands:
        assert f'id="xsweep-{name.name or name.callback.__name__}"' in pages["commands"]
    for name in xsweep.INTERFACE:
        assert re.search(rf'id="xsweep\.(interface|errors)\.{name}"', pages["python-reference"])
    for path in tmp_path.rglob("*.html"):
        assert not re.findall(r"(?:src|<link [^>]*href)=\"?https?:", path.read_text()), path

"""A wheel, installed in an environment of its own away from any checkout, is complete."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from finished_sweep import new_job
from job_table import begin, finish

from xsweep.db import jobs
from xsweep.db.engine import connect

pytestmark = pytest.mark.slow(2)

PROJECT = Path(__file__).resolve().parent.parent
PACKAGED = ("db", "evaluator", "trainer", "orchestrator", "sweeps", "xsweep")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without network."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGED:
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", source / "dist", source], check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def xsweep(wheel: Path, tmp_path_factory: pytest.TempPathFactory):
    """Runs the installed program in an empty folder; gives what it prints."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    # A path file lends the dependencies of this environment, but runs none of its path files, so
    # that an editable xsweep there is not seen.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(lent))
    work = tmp_path_factory.mktemp("work")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [folder / "venv" / "bin" / "xsweep", *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.python = python
    run.work = work
    return run


def test_the_wheel_carries_one_package_with_grids_templates_and_migrations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"xsweep"}
    expected = {
        f"xsweep/{path.relative_to(PROJECT)}"
        for pattern in ("**/*.py", "**/*.j2", "**/*.mako", "**/*.yaml", "**/*.csv")
        for folder in PACKAGED[:-1]
        for path in (PROJECT / folder).glob(pattern)
    }
    assert expected <= set(names)


def test_the_installed_package_is_not_the_checkout(xsweep):
    program = "import xsweep.db, xsweep.orchestrator; print(xsweep.db.__file__)"
    found = subprocess.run(
        [xsweep.python, "-c", program], cwd=xsweep.work, capture_output=True, text=True, check=True
    ).stdout
    assert str(PROJECT) not in found
    assert sysconfig.get_path("purelib") not in found


def test_a_shipped_grid_is_planned_by_its_name(xsweep):
    first, *_ = xsweep("plan", "quickstart").splitlines()
    assert first.startswith(
        "quickstart: 8 runs, 23 jobs (4 prepare, 1 teach, 10 evaluate, 8 train)"
    )


def test_a_report_is_compared_with_the_shipped_figures_of_the_study(xsweep):
    cell = {"backbone": "ELECTRA", "objective": "adr_mse", "teacher": "lists", "seed": 1}
    place = {"system": "run", "collection": "trec-dl-2020", "first_stage": "BM25", "depth": 20}
    evaluation = new_job(
        "evaluate", "evaluate", [("candidates", "prepare"), ("run", "train")], **cell, **place
    )
    (xsweep.work / ".xsweep").mkdir()
    engine = connect(f"sqlite:///{xsweep.work}/.xsweep/xsweep.db", create=True)
    parents = [new_job("prepare", "prepare"), new_job("train", "train", **cell)]
    jobs.add_sweep(engine, name="s", grid="", jobs=[*parents, evaluation])
    specs = {
        "prepare": {"first_stage": {"type": "bm25", "k1": 0.9, "b": 0.4}},
        "train": {"backbone": {"id": "google/electra-base-discriminator"}, "validation": None},
        "evaluate": {},
    }
    for _ in specs:
        (claim,) = jobs.claim(engine, owner="me", limit=1, lease_s=60)
        assert begin(engine, claim, folder=claim.name)
        assert finish(
            engine,
            claim,
            folder=claim.name,
            summary={"queries_without_results": 0},
            provenance={"spec": specs[claim.kind]},
            scores={"nDCG@10": {"q1": 0.7, "q2": 0.74}} if claim.kind == "evaluate" else None,
            query_set_name="trec-dl-2020",
        )
    engine.dispose()
    text = xsweep("report", "s", "--compare-to", "morand2026", "--baseline", "ELECTRA adr_mse")
    assert "arXiv 2603.03010" in " ".join(text.split())


def test_doctor_finds_nothing_wrong(xsweep):
    assert "database" in xsweep("doctor")

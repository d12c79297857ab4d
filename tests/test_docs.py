"""The documentation names what there is: every key of a grid file, every command."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from orchestrator import grid
from trainer.objectives.signals import SIGNALS

PROJECT = Path(__file__).parent.parent
REFERENCE = (PROJECT / "docs" / "grid.md").read_text()
MODELS = (
    grid.Grid,
    grid.Collection,
    grid.Backbone,
    grid.Teacher,
    grid.Objective,
    grid.Match,
    grid.Override,
    grid.TrainingSettings,
    grid.Validation,
    grid.Evaluation,
    grid.Need,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_reference_names_every_key_of_a_grid_file(model: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", REFERENCE))
    assert set(model.model_fields) <= words, set(model.model_fields) - words


def test_the_reference_names_every_objective() -> None:
    assert set(SIGNALS) <= set(re.findall(r"`(\w+)`", REFERENCE))


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in [PROJECT / "README.md", *PROJECT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_names_only_commands_that_there_are() -> None:
    import typer

    from orchestrator.cli import app

    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    blocks = re.findall(r"```console\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    used = set(re.findall(r"^xsweep (\w+)", "\n".join(blocks), re.MULTILINE))
    assert used
    assert used <= commands, used - commands


def test_every_fault_names_a_test_that_there_is() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (PROJECT / "docs" / "faults.md").read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (PROJECT / file).read_text(), f"{file} has no {test}"

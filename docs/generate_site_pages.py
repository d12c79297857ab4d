"""Pages of the documentation site that are made from the code and from the project's own pages.

MkDocs calls `on_files`, see `mkdocs.yml`.
"""

import re
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

import xsweep
from xsweep.orchestrator.cli import app

PROJECT = Path(__file__).resolve().parent.parent


def of_project(name: str) -> str:
    """A page of the project's folder, whose links lead to pages of the site."""
    text = (PROJECT / f"{name}.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](").replace("](README.md", "](index.md")
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)(?![\w-]+\.md|images/)[^)]*\)", r"`\1`", text)


def commands() -> str:
    """The help of every command."""
    command = get_command(app)
    context = click.Context(command, info_name="xsweep")
    text = get_docs_for_click(obj=command, ctx=context, name="xsweep", title="Commands")
    examples = r"^(First steps|Examples?):\n((?:  .*\n|\n(?=  ))+)"
    return re.sub(examples, r"\1:\n\n```console\n\2```\n", text, flags=re.MULTILINE)


def python_reference() -> str:
    """The docstrings of the public names of `xsweep`."""
    names = (f"::: {module}.{name}" for name, module in xsweep.INTERFACE.items())
    return "# Python\n\n" + "\n\n".join(names) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    pages = {"commands": commands(), "python-reference": python_reference()}
    pages |= {"index": of_project("README")}
    pages |= {name: of_project(name) for name in ("CONTRIBUTING", "CHANGELOG")}
    for name, content in pages.items():
        files.append(File.generated(config, f"{name}.md", content=content))
    return files

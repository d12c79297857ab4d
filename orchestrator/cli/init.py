"""`init`: write a first grid for a user's own data."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from xsweep.errors import ConfigError, DataError, XsweepError
from xsweep.orchestrator.cli.app import app, settings_of

if TYPE_CHECKING:
    from xsweep.evaluator.specs import FolderSpec, IrdsSpec

SPLITS = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test", "judged"),
}
"""Names of splits by the role that they get."""

PAIRS = 8_000
"""Pairs that an evaluation scores, about; the depth follows."""

NEGATIVES = 3


class Part(NamedTuple):
    """A split of the user's data."""

    name: str
    entry: str
    """Its entry in the grid file."""
    queries: int
    """Queries that have judgements."""
    judgements: int


@app.command()
def init(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder in BEIR's or TREC's layout, or an id of ir_datasets."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Grid file to write (default: DATA.yaml).")
    ] = None,
) -> None:
    """Write a grid file with comments for your own data, which runs in minutes.

    \b
    Examples:
      xsweep init data/mine
      xsweep init beir/scifact -o scifact.yaml
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from xsweep.orchestrator.cli.sweep import preview, show_forecast, show_plan
    from xsweep.orchestrator.grid.load import SHIPPED
    from xsweep.orchestrator.plan import plan_grid

    folder = Path(source)
    name = folder.resolve().name if folder.is_dir() else source.removeprefix("irds:")
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "mine"
    path = output or (folder.resolve().parent if folder.is_dir() else Path.cwd()) / f"{title}.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists already: give another name with -o")
    found = _folder_splits(folder) if folder.is_dir() else _irds_splits(source)
    documents, parts = _parts(title, found, path.resolve().parent)
    test = parts["test"]
    templates = Environment(  # noqa: S701  (YAML, not HTML)
        loader=PackageLoader("xsweep.orchestrator.cli", "."), undefined=StrictUndefined
    )
    values: dict[str, Any] = {
        "source": source,
        "file": path.name,
        "schema": SHIPPED / "grid.schema.json",
        "name": title,
        "documents": f"{documents:,}",
        "parts": parts,
        "train": parts["train"].name if "train" in parts else "apidocs/train",
        "dev": parts["dev"].name if "dev" in parts else "",
        "negatives": NEGATIVES,
        "steps": 60,
        "document_tokens": 128,
        "depth": min(100, max(10, PAIRS // test.queries)),
    }
    path.write_text(templates.get_template("init.yaml.j2").render(values) + "\n")
    try:
        planned = plan_grid(path, settings_of(ctx))
    except XsweepError:
        path.unlink()
        raise
    typer.echo(f"Wrote {path}")
    show_plan(settings_of(ctx), planned, preview(settings_of(ctx), planned))
    show_forecast(settings_of(ctx), planned)
    typer.echo(f"Next: xsweep submit {path} --watch")


def _folder_splits(folder: Path) -> dict[str, "FolderSpec"]:
    from xsweep.evaluator.data.collection import folder_splits
    from xsweep.evaluator.specs import FolderSpec

    path = folder.resolve()
    return {
        split: FolderSpec(name=path.name, path=str(path), split=split)
        for split in folder_splits(path)
    }


def _irds_splits(source: str) -> dict[str, "IrdsSpec"]:
    import ir_datasets

    from xsweep.evaluator.data.suites import dataset
    from xsweep.orchestrator.grid.yaml import nearest

    name, known = source.removeprefix("irds:"), list(ir_datasets.registry)
    if name not in known:
        raise ConfigError(
            f"{source} is neither a folder nor a data set of ir_datasets: {nearest(name, known)}"
        )
    above = name.rpartition("/")[0] if ir_datasets.registry[name].has_qrels() else name
    splits = {each.rpartition("/")[2]: each for each in known if each.rpartition("/")[0] == above}
    if not above or not splits.keys() & {name for names in SPLITS.values() for name in names}:
        splits = {"test": name}
    return {split: dataset(each) for split, each in splits.items()}


def _parts(
    title: str, found: "dict[str, FolderSpec] | dict[str, IrdsSpec]", start: Path
) -> tuple[int, dict[str, Part]]:
    """The number of documents, and the splits by the role that they get, after reading them."""
    from xsweep.evaluator.data import load_collection
    from xsweep.evaluator.specs import FolderSpec

    splits = {role: next((s for s in names if s in found), None) for role, names in SPLITS.items()}
    if splits["test"] is None:
        splits["test"], splits["dev"] = splits["dev"], None
    if splits["test"] is None:
        given = ", ".join(found) or "none"
        raise ConfigError(f"{title} has no split to test on, such as test or dev; found: {given}")
    parts: dict[str, Part] = {}
    documents: set[str] = set()
    for role, split in splits.items():
        if split is None:
            continue
        collection = load_collection(spec := found[split])
        documents = documents or {doc_id for doc_id, _ in collection.documents()}
        judged = {
            id_: grades for id_, grades in collection.qrels.items() if id_ in collection.queries
        }
        known = [doc_id for grades in judged.values() for doc_id in grades if doc_id in documents]
        total = sum(map(len, collection.qrels.values()))
        if not known:
            raise DataError(
                f"{title}, split {split!r}: none of its {total:,} judgements names a query and a "
                "document that are here: ids of the three files must agree"
            )
        if len(known) < total:
            typer.echo(
                f"{split}: {total - len(known):,} of {total:,} judgements name a query or a "
                "document that is not here; they count as they do in trec_eval"
            )
        entry = f"irds:{spec.id}" if not isinstance(spec, FolderSpec) else _entry(spec, start)
        parts[role] = Part(f"{title}-{role}", entry, len(judged), len(known))
    return len(documents), parts


def _entry(spec: "FolderSpec", start: Path) -> str:
    path = Path(spec.path)
    shown = path.relative_to(start) if path.is_relative_to(start) else path
    return f"{{folder: {json.dumps(str(shown))}, split: {spec.split}}}"

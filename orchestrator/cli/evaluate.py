"""`evaluate`: a finished cross-encoder on collections, here and now, without the job table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import app
from xsweep import ConfigError

if TYPE_CHECKING:
    from evaluator.specs import CollectionSpec


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A model's folder, or that of a training.")
    ],
    collection: Annotated[
        list[str] | None,
        typer.Option(help="apidocs/test, irds:beir/scifact/test, or a folder in BEIR's layout."),
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="A suite, such as beir-13.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A TREC run to re-rank; without it, BM25 is computed.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Candidates to re-rank.", min=1)] = 100,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", "-m", help="May be repeated [nDCG@10, RR@10].")
    ] = None,
    query_tokens: Annotated[int, typer.Option(min=1)] = 32,
    document_tokens: Annotated[int, typer.Option(min=1)] = 256,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep runs and per-query values here.")
    ] = None,
) -> None:
    """Re-rank collections with a model and print its measures beside the first stage's.

    \b
    Examples:
      xsweep evaluate my-model --collection apidocs/test --depth 20
      xsweep evaluate my-model --collection irds:beir/scifact/test --run bm25.run.gz
      xsweep evaluate my-model --suite beir-13 -o results/
    """
    import tempfile

    from evaluator.measure_names import parse_measure

    measures = [str(parse_measure(name)) for name in measure or ["nDCG@10", "RR@10"]]
    if not model.is_dir():
        raise ConfigError(f"{model} is not a folder with a model")
    # The folder that a training leaves holds the model beside its logs.
    weights = model / "model" if (model / "model").is_dir() else model
    collections = _collections(collection or [], suite or [])
    if run is not None and len(collections) != 1:
        raise ConfigError("--run belongs to one --collection: its queries are in the run")
    settings = {
        "depth": depth,
        "measures": measures,
        "query_tokens": query_tokens,
        "document_tokens": document_tokens,
        "precision": precision,
    }
    with tempfile.TemporaryDirectory() as scratch:
        root = output or Path(scratch)
        for each in collections:
            means = _evaluate(each, weights.absolute(), run, settings, root)
            typer.echo(each.name)
            for name, (first, reranked) in means.items():
                typer.echo(f"  {name:12} {reranked:.4f}  (first stage {first:.4f})")


def _collections(names: list[str], suites: list[str]) -> "list[CollectionSpec]":
    from evaluator.specs import ApidocsSpec, FolderSpec, IrdsSpec
    from evaluator.suites import suite
    from orchestrator.references import APIDOCS

    found: list[CollectionSpec] = []
    for name in names:
        if name in APIDOCS:
            found.append(ApidocsSpec.model_validate({"name": name, "split": name.split("/")[1]}))
        elif name.startswith("irds:"):
            found.append(IrdsSpec(name=name[5:], id=name[5:]))
        elif Path(name).is_dir():
            found.append(FolderSpec(name=Path(name).name, path=str(Path(name).absolute())))
        else:
            raise ConfigError(
                f"unknown collection {name!r}: write {', '.join(APIDOCS)}, irds:<id of "
                "ir_datasets>, or a folder with corpus.jsonl, queries.jsonl and qrels/"
            )
    for name in suites:
        found += suite(name)
    if not found:
        raise ConfigError("name what to evaluate on: --collection or --suite")
    return found


def _evaluate(
    collection: "CollectionSpec",
    weights: Path,
    run: Path | None,
    settings: dict[str, object],
    root: Path,
) -> dict[str, tuple[float, float]]:
    """Each measure's mean for the first stage and for the model."""
    from evaluator.jobs import run_job

    place = root / collection.name.replace("/", "-")
    parts = {"candidates": place / "candidates", "first": place / "first-stage"}
    parts["model"] = place / "model"
    for folder in parts.values():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: name another --output")
        folder.mkdir(parents=True, exist_ok=True)
    stage = {"type": "run", "file": {"path": str(run.absolute())}} if run else {"type": "bm25"}
    described = collection.model_dump(mode="json")
    candidates = {"collection": described, "first_stage": stage, "depth": settings["depth"]}
    run_job("prepare", {"type": "candidates", **candidates}, {}, parts["candidates"])
    model = {"type": "cross_encoder", "models": [{"folder": str(weights)}]}
    scorers = {"first": {"type": "first_stage"}, "model": {"type": "model", "model": model}}
    means = {}
    for part, scorer in scorers.items():
        spec = {"collection": described, "scorer": scorer, **settings}
        run_job("evaluate", spec, {"candidates": parts["candidates"]}, parts[part])
        means[part] = json.loads((parts[part] / "summary.json").read_text())["means"]
    return {name: (means["first"][name], means["model"][name]) for name in means["model"]}

"""`evaluate`: evaluate a trained cross-encoder on collections, without the job table."""

import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from xsweep.errors import ConfigError
from xsweep.orchestrator.cli.app import app, measure_option, settings_of
from xsweep.orchestrator.settings import Settings, absolute

if TYPE_CHECKING:
    from xsweep.evaluator.jobs import Evaluation
    from xsweep.evaluator.specs import CollectionSpec, IdenticalIds, TeacherModelSpec


@app.command()
def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a trained run's name, or a Hub id.")
    ],
    collection: Annotated[
        list[str] | None,
        typer.Option(help="apidocs/test, irds:beir/scifact/test, or a folder."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of collections that are folders.")] = "test",
    suite: Annotated[list[str] | None, typer.Option(help="A suite, such as beir-13.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A TREC run to re-rank instead of --first-stage.")
    ] = None,
    order: Annotated[
        Literal["score", "rank"], typer.Option(help="The column that orders the run.")
    ] = "score",
    first_stage: Annotated[
        str, typer.Option(help="bm25, scoreddocs, dense:FOLDER or splade:FOLDER.")
    ] = "bm25",
    depth: Annotated[int, typer.Option(help="Candidates to re-rank per query.", min=1)] = 100,
    measure: Annotated[
        list[str] | None, measure_option(help="Repeatable (default: nDCG@10, RR@10).")
    ] = None,
    identical_ids: Annotated[
        Literal["keep", "drop"] | None,
        typer.Option(help="drop leaves out a query's own document, one with the same id."),
    ] = None,
    query_tokens: Annotated[int, typer.Option(min=1, help="Tokens kept of a query.")] = 32,
    document_tokens: Annotated[int, typer.Option(min=1, help="Tokens kept of a document.")] = 256,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="Precision of the scores' products.")
    ] = "fp32",
    prompt: Annotated[
        str | None,
        typer.Option(help="Prompt of a causal reranker: qwen3-reranker, mxbai-rerank-v2, …"),
    ] = None,
    listwise: Annotated[
        Literal["rankzephyr", "rankgpt", "first"] | None,
        typer.Option(help="Prompt of a language model that ranks lists in sliding windows."),
    ] = None,
    window: Annotated[int, typer.Option(help="Documents in one question.", min=2)] = 20,
    stride: Annotated[int, typer.Option(help="Documents that a window moves by.", min=1)] = 10,
    server: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible API that runs the model.")
    ] = None,
    max_passages: Annotated[
        int, typer.Option(help="Windows per document; the best score counts.", min=1)
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for runs and per-query values.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object of schema xsweep.evaluate/1.")
    ] = False,
) -> None:
    """Re-rank collections with a model and print its measures beside the first stage's.

    Texts and pairs that collections share are tokenised and scored once. With -o, a killed
    command resumes when it is run again.

    \b
    Examples:
      xsweep evaluate my-model --collection data/mine --depth 20
      xsweep evaluate my-model --collection irds:beir/scifact/test --run bm25.run.gz
      xsweep evaluate cross-encoder/ms-marco-MiniLM-L6-v2 --suite beir-13 -o results/
      xsweep evaluate Qwen/Qwen3-Reranker-0.6B --prompt qwen3-reranker --suite nano-beir
      xsweep evaluate castorini/rank_zephyr_7b_v1_full --listwise rankzephyr --suite nano-beir
      xsweep evaluate "MiniLM-L6 infonce bm25_lists s1" --collection data/mine --split dev --json
    """
    import tempfile

    from xsweep.evaluator.measure_names import parse_measure

    measures = [str(parse_measure(name)) for name in measure or ["nDCG@10", "RR@10"]]
    source = _model(settings_of(ctx), model)
    windows: dict[str, object] = {
        "prompt": listwise or "rankzephyr",
        "window": window,
        "stride": stride,
        "server": server,
    }
    scorer = _scorer(source, prompt, windows if listwise or server else None)
    collections = _collections(collection or [], split, suite or [], identical_ids)
    if run is not None and len(collections) != 1:
        raise ConfigError("--run re-ranks one collection: give exactly one --collection")
    settings = {
        "depth": depth,
        "measures": measures,
        "query_tokens": query_tokens,
        "document_tokens": document_tokens,
        "precision": precision,
        "max_passages": max_passages,
    }
    with tempfile.TemporaryDirectory() as scratch:
        root = absolute(output or scratch)
        stage = _stage(first_stage, run, order)
        rows = _evaluate(collections, scorer, stage, settings, root)
    rows += [_suite_row(name, rows) for name in suite or []]
    if as_json:
        results = [
            {
                "name": row.name,
                "about": row.about,
                "means": {
                    name: {"first_stage": first, "model": reranked}
                    for name, (first, reranked) in row.means.items()
                },
            }
            for row in rows
        ]
        document = {"schema": "xsweep.evaluate/1", "model": source, "results": results}
        typer.echo(json.dumps(document, indent=1))
        return
    for row in rows:
        typer.echo(f"{row.name}  ({row.about})")
        for name, (first, reranked) in row.means.items():
            typer.echo(f"  {name:12} {reranked:.4f}  (first stage {first:.4f})")


class Row(NamedTuple):
    """Results on one collection, or a suite's means."""

    name: str
    about: str
    """Queries and recall of a collection, or the number of a suite's data sets."""
    means: dict[str, tuple[float, float]]
    """Mean of each measure: first stage, model."""


def _model(settings: "Settings", name: str) -> dict[str, str]:
    """Return the model as a job's specification: of a folder, a trained run, or the Hub.

    Raises ConfigError for a name that is none of these, DataError for a folder without a model.
    """
    from xsweep.db.engine import connect, has_tables
    from xsweep.db.explain import finished_folder
    from xsweep.evaluator.data.files import tree_sha256
    from xsweep.orchestrator.storage.store import open_store

    folder, why = Path(name), ""
    if not folder.is_dir() and has_tables(settings.database):
        engine = connect(settings.database, read_only=True)
        try:
            folder = open_store(settings.store).fetch(finished_folder(engine, "train", name))
        except ConfigError as problem:
            why = f": {problem}"
    if folder.is_dir():
        # The folder of a training holds the model beside its logs.
        weights = (folder / "model" if (folder / "model").is_dir() else folder).absolute()
        return {"folder": str(weights), "sha256": tree_sha256(weights)}
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return {"id": name}
    raise ConfigError(f"{name!r} is neither a folder, nor a Hub id, nor a run that is trained{why}")


def _scorer(
    model: dict[str, str], prompt: str | None, listwise: dict[str, object] | None
) -> "TeacherModelSpec":
    """Return the specification of a cross-encoder, or of a language model with its prompt."""
    from pydantic import ValidationError

    from xsweep.errors import field_errors
    from xsweep.evaluator.specs import TeacherModelSpec

    kind = "listwise_llm" if listwise else "causal_reranker" if prompt else "cross_encoder"
    spec = {"type": kind, "prompt": prompt, "listwise": listwise, "models": [model]}
    try:
        return TeacherModelSpec.model_validate(spec)
    except ValidationError as problem:
        option = "--listwise" if listwise else "--prompt"
        raise ConfigError(f"{option}: {field_errors(problem)}") from problem


def _stage(name: str, run: Path | None, order: str) -> dict[str, object]:
    """Return the first stage as a job's specification. Raises ConfigError if it is unknown."""
    if run is not None:
        return {"type": "run", "file": {"path": str(run.absolute())}, "order": order}
    kind, _, folder = name.partition(":")
    if kind in ("dense", "splade") and Path(folder).is_dir():
        return {"type": kind, "model": {"folder": str(Path(folder).absolute())}}
    if name in ("bm25", "scoreddocs"):
        return {"type": name}
    raise ConfigError(
        f"unknown first stage {name!r}: write bm25, scoreddocs, dense:FOLDER or splade:FOLDER "
        "with a model's folder, or give --run"
    )


def _collections(
    names: list[str], split: str, suites: list[str], identical_ids: "IdenticalIds | None"
) -> "list[CollectionSpec]":
    from xsweep.evaluator.data.suites import dataset, suite
    from xsweep.evaluator.specs import ApidocsSpec, FolderSpec
    from xsweep.orchestrator.grid.resolve import APIDOCS

    found: list[CollectionSpec] = []
    for name in names:
        if name in APIDOCS:
            found.append(ApidocsSpec.model_validate({"name": name, "split": name.split("/")[1]}))
        elif name.startswith("irds:"):
            found.append(dataset(name[5:]))
        elif Path(name).is_dir():
            path = Path(name).absolute()
            found.append(FolderSpec(name=path.name, path=str(path), split=split))
        else:
            raise ConfigError(
                f"unknown collection {name!r}: write {', '.join(APIDOCS)}, irds:<id of "
                "ir_datasets>, or a folder with corpus.jsonl, queries.jsonl and qrels/"
            )
    for name in suites:
        found += suite(name)
    if not found:
        raise ConfigError("nothing to evaluate on: give --collection or --suite")
    if identical_ids:
        return [each.model_copy(update={"identical_ids": identical_ids}) for each in found]
    return found


def _evaluate(
    collections: "list[CollectionSpec]",
    scorer: "TeacherModelSpec",
    stage: dict[str, object],
    settings: dict[str, object],
    root: Path,
) -> list[Row]:
    """Prepare the candidates of every collection, then score all of them in one pass."""
    from xsweep.evaluator.data.files import is_finished, write_manifest
    from xsweep.evaluator.jobs import Evaluation, evaluate_together, run_job
    from xsweep.evaluator.specs import EvaluateSpec

    scorers = {
        "first-stage": {"type": "first_stage"},
        "model": {"type": "model", "model": scorer},
    }
    evaluations: dict[str, list[Evaluation]] = {part: [] for part in scorers}
    job: dict[str, object] = {"first_stage": stage, **settings}
    job["model"] = scorer.models[0].model_dump(exclude_unset=True)
    if scorer.prompt:
        job["prompt"] = scorer.prompt.model_dump(mode="json")
    if scorer.listwise:
        job["listwise"] = scorer.listwise.model_dump(exclude={"server", "concurrency"})
    for collection in collections:
        place = root / collection.name.replace("/", "-")
        described = collection.model_dump(mode="json")
        _claim(place, {"collection": described, **job})
        candidates = place / "candidates"
        if not is_finished(candidates):
            spec = {"collection": described, "first_stage": stage, "depth": settings["depth"]}
            candidates.mkdir(exist_ok=True)
            run_job("prepare", {"type": "candidates", **spec}, {}, candidates, _progress)
        for part, by in scorers.items():
            spec = {"collection": described, "scorer": by, **settings}
            checked = EvaluateSpec.model_validate(spec)
            (place / part).mkdir(exist_ok=True)
            evaluations[part].append(Evaluation(checked, {"candidates": candidates}, place / part))
    for each in evaluations.values():
        if left := [evaluation for evaluation in each if not is_finished(evaluation.out)]:
            evaluate_together(left, _progress)
        for evaluation in left:
            write_manifest(evaluation.out)
    return [_row(*pair) for pair in zip(*evaluations.values(), strict=True)]


def _claim(place: Path, job: dict[str, object]) -> None:
    """Claim a folder for one evaluation. Raises ConfigError if it holds another one."""
    note = place / "job.json"
    described = json.dumps(job, indent=1, sort_keys=True)
    if note.is_file() and note.read_text() == described:
        return
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"{place} holds another evaluation: choose another --output")
    place.mkdir(parents=True, exist_ok=True)
    note.write_text(described)


def _row(first: "Evaluation", model: "Evaluation") -> Row:
    before, after = (json.loads((each.out / "summary.json").read_text()) for each in (first, model))
    ((measure, value),) = before["recall"].items()
    means = {name: (before["means"][name], mean) for name, mean in after["means"].items()}
    about = f"{after['queries']} queries, first stage {measure} {value:.4f}"
    if after["scores_are_constant"]:
        about += "; WARNING: every candidate has the same score"
    return Row(model.spec.collection.name, about, means)


def _suite_row(name: str, rows: list[Row]) -> Row:
    """Average a suite over its data sets without weights; CQADupStack's parts count as one."""
    from xsweep.evaluator.data.suites import averaged_as, suite
    from xsweep.orchestrator.report.table import Column

    names = {collection.name for collection in suite(name)}
    members = [row for row in rows if row.name in names]
    weights = Column("", name, tuple(row.name for row in members)).weights

    def mean(measure: str, side: int) -> float:
        return fmean((row.means[measure][side] for row in members), weights)

    means = {measure: (mean(measure, 0), mean(measure, 1)) for measure in rows[0].means}
    data_sets = {averaged_as(row.name) for row in members}
    return Row(name, f"mean of {len(data_sets)} data sets", means)


def _progress(done: int, total: int, **figures: float) -> None:
    if sys.stderr.isatty():
        speed = f" {figures['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in figures else ""
        typer.echo(f"\r{done}/{total}{speed}   ", nl=done == total, err=True)
